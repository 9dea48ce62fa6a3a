"""Pictures, as text: pure functions of what the registry and the manifests say.

Of a version's ancestry:
svg      a page of its own, with the loss curves; readable on light and dark
mermaid  for a Markdown page or an issue, which draws it
spark    a curve in one line of text
words    what stands in the boxes of both

Of a delta:
heatmap  layers by kinds of tensors; readable on light and dark

text     text as it may stand in any of them
"""
