"""The report stage: one HTML page with everything that a run's records say, and nothing that they do not.

`collect_records` reads the records into a `RunRecords`; `render_page` turns it into the page.
"""

from tinykd.report.collect import BoardRecords, RunRecords, collect_records
from tinykd.report.render import render_page

__all__ = ["BoardRecords", "RunRecords", "collect_records", "render_page"]
