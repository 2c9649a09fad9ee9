"""Are there known vulnerabilities in the pinned packages? Says how many packages were looked up, and never pretends.

Where PyPI's vulnerability service cannot be reached, pip-audit leaves each package out and finds "no known
vulnerabilities": that is no answer, and is said so. Exit code 1: one was found that audit-accepted.txt does not name.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PINS = HERE.parent / "constraints.txt"


def main() -> int:
    rows = [line.split(maxsplit=1) for line in (HERE / "audit-accepted.txt").read_text("utf-8").splitlines()]
    accepted = {row[0]: row[1] for row in rows if len(row) > 1 and row[0] != "#"}
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps", "--disable-pip"]
    asked = subprocess.run(
        [*command, "--format=json", "--progress-spinner=off"], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: pip-audit gave no answer. {' '.join(asked.stderr.split())[-500:]}")
        return 0
    left_out = [each["name"] for each in packages if "skip_reason" in each]
    found = {vuln["id"]: (each, vuln) for each in packages for vuln in each.get("vulns", [])}
    if len(left_out) == len(packages):
        print(f"NOT AUDITED: the service was not reached, and none of {len(packages)} packages was looked up.")
        return 0
    print(f"{len(packages) - len(left_out)} of {len(packages)} packages were looked up, {len(found)} findings.")
    if left_out:
        print(f"NOT AUDITED, for the service does not know them: {', '.join(left_out)}")
    names = {name: {name, *vuln["aliases"]} for name, (_, vuln) in found.items()}
    open_ones = [name for name, known in names.items() if known.isdisjoint(accepted)]
    for name in found:
        each, vuln = found[name]
        why = next((accepted[known] for known in names[name] if known in accepted), None)
        fixed = f"mended in {', '.join(vuln['fix_versions'])}" if vuln["fix_versions"] else "not mended yet"
        print(f"{each['name']} {each['version']}: {name}, {fixed}. {f'Accepted: {why}' if why else 'NEW.'}")
    for name in accepted.keys() - set().union(*names.values()):
        print(f"{name} is accepted in audit-accepted.txt, and not found any more: take it out.")
    return 1 if open_ones else 0


sys.exit(main())
