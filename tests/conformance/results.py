"""Reads a subunit stream and prints one JSON object a test: id, status, reason (a line), details (all that it said)."""

import json
import sys

import subunit
import testtools

ENDS = {"success", "fail", "skip", "xfail", "uxsuccess"}


class Reader(testtools.StreamResult):
    def __init__(self):
        self.texts = {}

    def status(self, test_id=None, test_status=None, file_name=None, file_bytes=None, **_):
        if test_id is None:
            return
        if file_bytes is not None:
            parts = self.texts.setdefault(test_id, {})
            parts[file_name] = parts.get(file_name, b"") + bytes(file_bytes)
        if test_status in ENDS:
            parts = {k: v.decode("utf-8", "replace") for k, v in self.texts.pop(test_id, {}).items()}
            said = parts.get("reason") or parts.get("traceback") or ""
            lines = [line for line in said.strip().splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else ""
            if test_status == "fail":
                # The exception may take several lines: the last that is not indented names it.
                flush = [line for line in lines if not line[0].isspace()]
                reason = flush[-1] if flush else reason
                at = next((i for i in range(len(lines) - 1, -1, -1) if ": " in lines[i] and not lines[i][0].isspace()), None)
                if at is not None:
                    reason = " ".join(line.strip() for line in lines[at:at + 3])
            details = "\n".join(f"--- {name}\n{text}" for name, text in parts.items())
            print(json.dumps({"id": test_id, "status": test_status, "reason": reason[:400], "details": details}), flush=True)


case = subunit.ByteStreamToStreamResult(sys.stdin.buffer, non_subunit_name="output")
case.run(Reader())
