"""Chat templates: with the assistant's words marked, without, and one whose earlier turns change later."""

MARKED = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>\n{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Only the last turn keeps its end mark, so no earlier rendering is what a later one begins with.
SHIFTING = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}"
