"""One node of a job under supervision (`supervise`), and torchrun as it is started (`agent`)."""
