"""Personal data is removed, medicine stays. All persons and numbers here are invented."""

import re
import time

import pytest

from megatron_chimed.data.cleaning.deidentify import RULES, deidentify
from megatron_chimed.data.cleaning.normalize import normalize
from tests.unit.data.cleaning.identifiers import IDENTIFIERS, TRAPS
from tests.unit.data.cleaning.unseen_identifiers import UNSEEN_IDENTIFIERS, UNSEEN_TRAPS

REPLACED = [
    # An example of GB 11643 itself, with its check digit X, and one made for this test.
    ("证号11010519491231002X，男", "证号[身份证号]，男", "id_card"),
    ("其证11010519491231002x属实", "其证[身份证号]属实", "id_card"),
    ("老证 110105491231002 已换", "老证 [身份证号] 已换", "id_card"),
    ("身份证号：110105194912310021（抄写有误）", "身份证号：[身份证号]（抄写有误）", "id_card"),
    ("身份证号码（患者）: 110105 19491231 002X", "身份证号码（患者）: [身份证号]", "id_card"),
    ("身份证：110105********002X", "身份证：[身份证号]", "id_card"),
    ("请打13812345678找我", "请打[电话]找我", "phone"),
    ("请打138-1234-5678或+86 139 1234 5678", "请打[电话]或[电话]", "phone"),
    ("１３８１２３４５６７８联系", "[电话]联系", "phone"),
    ("13812345678/13912345678均可", "[电话]/[电话]均可", "phone"),
    ("拨010-65123456转801", "拨[电话]", "phone"),
    ("拨（0512）65123456。", "拨[电话]。", "phone"),
    ("客服400-812-3456", "客服[电话]", "phone"),
    ("联系电话：65123456 2019年建档", "联系电话：[电话] 2019年建档", "phone"),
    ("手机号是13812345678", "手机号是[电话]", "phone"),
    ("Tel: 010 65123456", "Tel: [电话]", "phone"),
    ("病历号：A0012345，住院号 20190345", "病历号：[编号]，住院号 [编号]", "record_number"),
    ("门诊号12345；CT号：CT-20190345", "门诊号[编号]；CT号：[编号]", "record_number"),
    (
        "患者ID：00012345，医保卡号为320500123456",
        "患者ID：[编号]，医保卡号为[编号]",
        "record_number",
    ),
    ("病理号：19-01234", "病理号：[编号]", "record_number"),
    ("发到 zhang.san_88@example.com.cn 即可", "发到 [邮箱] 即可", "email"),
    ("邮箱zhangsan@qq.com。", "邮箱[邮箱]。", "email"),
    ("微信号：zhang_san88，QQ: 12345678", "微信号：[联系方式]，QQ: [联系方式]", "contact"),
    ("姓名：张三 性别：男", "姓名：[姓名] 性别：男", "name"),
    ("姓名：欧阳小明性别男", "姓名：[姓名]性别男", "name"),
    ("患者姓名: 李四，男，35岁", "患者姓名: [姓名]，男，35岁", "name"),
    ("姓名：王五女，28岁", "姓名：[姓名]女，28岁", "name"),
    ("医师签名：赵六", "医师签名：[姓名]", "name"),
    ("姓名：阿依古丽·买买提\n主诉：发热", "姓名：[姓名]\n主诉：发热", "name"),
]

KEPT = (
    "阿莫西林 0.5g×2次/日，最大 4000mg/d，2000000U 肌注，1200000IU，80万单位",
    "白细胞 11.2×10^9/L，血小板 13500000000/L，病毒载量 13812345678copies/ml",
    "菌落 13800000000个/克，13500000000 × 2，范围 13500000000～14000000000",
    "2019年12月31日，1990-2020，20190312，2019-03-12 08:30:15，1949.10.01",
    "ICD-10 E11.900x001，I10.x05，O80.0，ICD-9-CM-3 54.5100；LOINC 2345-7",
    "国药准字H20003132，批准文号国药准字Z20053139，批号 20200315123，GB 11643-1999",
    "剂量递增 400-800-1200mg，第 100-200-300 毫升，血压 120-130/80-90mmHg",
    "DOI 10.1016/j.cell.2020.01.001，PMID 31986264，ISBN 978-7-117-26438-8",
    "临床试验登记号：NCT04280705，登记号：ChiCTR2000029308",
    "圆周率 3.14159265358979，P=0.000013812345678，坐标 116.397128123456",
    "SNP rs13812345678，CHEMBL13812345678，样品 AB110105491231002",
    "110105199913310021 与 990105194912310029 都不是证号，110105194912310020 校验不符",
    "急救电话120，热线12320，门诊号源紧张，住院号码牌，姓名和电话要写清",
    "姓名：不详，姓名：  性别：男，姓名：\n主诉：发热3天，联系人：家属",
    "签名：同上；姓名：张*；姓名栏请填写；他的名字：很长很长的一个名字其实不是",
    "医生：您好！患者：发热。@所有人，5@3，每 8h 1 次",
    "微信公众号很多，QQ 12 个群，手机每天看 8 小时，电话里说 3 次",
)


@pytest.mark.parametrize(("text", "expected", "rule"), REPLACED)
def test_personal_data_is_replaced(text, expected, rule):
    cleaned, changes = deidentify(text)
    assert cleaned == expected
    assert [change.rule for change in changes] == ([rule])
    assert sum(change.count for change in changes) == expected.count("[")
    assert deidentify(cleaned) == (cleaned, []), "placeholders are left alone"


@pytest.mark.parametrize("text", KEPT)
def test_medicine_is_kept(text):
    assert deidentify(text) == (text, [])
    assert deidentify(normalize(text)[0])[1] == []


def test_the_check_digit_of_a_card_decides():
    """Of all last characters one is right; computed by the standard's own congruence."""
    head = "53010219200508011"
    right = [last for last in "0123456789X" if deidentify(f"卡{head}{last}")[1]]
    digits = [10 if last == "X" else int(last) for last in head + right[0]]
    assert len(right) == 1
    assert sum(digit * pow(2, 17 - place, 11) for place, digit in enumerate(digits)) % 11 == 1


@pytest.mark.parametrize("kind", IDENTIFIERS)
def test_planted_identifiers_are_replaced(kind):
    for sentence in (*IDENTIFIERS[kind], *UNSEEN_IDENTIFIERS[kind]):
        cleaned, changes = deidentify(re.sub("<<|>>", "", sentence))
        secrets = re.findall("<<(.*?)>>", sentence)
        assert not any(secret in cleaned for secret in secrets), cleaned
        around = [part for part in re.split("<<.*?>>", sentence) if len(part) > 1]
        assert all(part in cleaned for part in around), "no more than that"
        kinds = {"phone", "contact"} if kind in ("phone", "contact") else {kind}  # often the same
        assert kinds & {change.rule for change in changes}


@pytest.mark.parametrize("text", (*TRAPS, *UNSEEN_TRAPS))
def test_what_only_looks_like_an_identifier_is_kept(text):
    assert deidentify(text) == (text, [])


def test_an_example_never_shows_what_was_replaced():
    assert deidentify("患者：李四，电话13812345678")[1][0].example == "[电话]"
    text = "姓名：张三，电话13812345678，另 13912345678，身份证 11010519491231002X"
    _, changes = deidentify(text)
    assert {change.rule: change.count for change in changes} == {
        "id_card": 1,
        "phone": 2,
        "name": 1,
    }
    for change in changes:
        assert "[" in change.example
        assert not any(secret in change.example for secret in ("张三", "138", "139", "1101"))


def test_the_fast_searches_hide_no_match():
    planted = [sentence for kind in IDENTIFIERS.values() for sentence in kind]
    for text in [text for text, _, _ in REPLACED] + [re.sub("<<|>>", "", s) for s in planted]:
        for rule in RULES:
            if any(rule.is_valid(m[0][len(m[1]) :]) for m in rule.pattern.finditer(text)):
                assert all(need(text) for need in rule.needs), (rule.name, text)


@pytest.mark.parametrize(
    "text", ["1" * 100_000, "1 " * 50_000, "a" * 100_000 + "@", "姓名：" * 30_000]
)
def test_long_hostile_texts_take_linear_time(text):
    start = time.process_time()
    deidentify(text)
    assert time.process_time() - start < 2


def test_real_dialogues_hold_next_to_nothing(real_data):
    """Others cleaned this public data: a rule that starts to match medicine shows up here."""
    text = (real_data / "CMtMedQA_test.json").read_text() + (real_data / "fever.txt").read_text()
    assert deidentify(text)[1] == []
