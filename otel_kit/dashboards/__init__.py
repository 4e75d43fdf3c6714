"""What people look at in Grafana, as code: signals become panels, panels become boards, boards become `grafana/`.

Read in this order: ``signals``, then ``services``, ``jobs`` and ``pipeline`` (what is asked of the backends); ``panels``
(how it is drawn); ``boards`` (where it stands); ``datasources`` and ``links`` (how traces, metrics and logs lead to one
another); ``generate`` (what writes the files).
"""
