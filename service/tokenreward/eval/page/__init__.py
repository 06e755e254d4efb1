"""The outcome as one HTML file: no scripts, nothing from elsewhere, light and dark, narrow and
wide.

report       the sections of the page
document     the frame around them: head, style
plot         the drawings, as inline SVG
passage      a response with each unit on the colour of its reward
markup       text of others into HTML
"""

from tokenreward.eval.page.report import Answered, examples_of, page

__all__ = ["Answered", "examples_of", "page"]
