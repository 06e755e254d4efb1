"""Three reports of one outcome: text for a terminal, JSON for programs, and one HTML file.

The HTML file has no scripts and needs nothing from elsewhere; it suits light and dark, narrow and
wide screens.

text         tables
json         every estimate and every failure
html         the sections of the page
style        the frame around them: head and style sheet
plot         its drawings, as inline SVG
response     a response with each unit on the colour of its reward
"""

from tokenreward.eval.report.html import html_report
from tokenreward.eval.report.json import json_report
from tokenreward.eval.report.text import WIDTH, text_report

__all__ = ["WIDTH", "html_report", "json_report", "text_report"]
