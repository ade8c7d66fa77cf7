"""YAML of plain values in which no key stands twice."""

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses repeated keys, of which YAML would keep the last without a word.

    Keys that a merge (`<<`) brings in may be overridden: that is what it is for.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping.

        Raises:
            yaml.constructor.ConstructorError: A key stands twice.
        """
        given = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in given]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            text = f"duplicate keys: {', '.join(twice)}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return super().construct_mapping(node, deep)
