"""``python -m qcore.report > qcore/report/schema.json`` writes the published schema anew."""

import json

from qcore.report import REPORTS, schema

print(json.dumps(schema(*REPORTS), indent=2))
