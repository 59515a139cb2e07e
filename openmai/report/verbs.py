"""The verb that shows a whole run on one page."""

from openmai.base.verb import Verb

VERBS = {"": Verb("openmai.report.config:ReportConfig", "openmai.report.report:report", "one self-contained HTML page on a whole run")}
