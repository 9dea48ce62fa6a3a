"""Pictures of a version's ancestry, as text: pure functions of what the registry says.

svg      a page of its own, with the loss curves; readable on light and dark
mermaid  for a Markdown page or an issue, which draws it
spark    a curve in one line of text
words    what stands in the boxes of both
"""
