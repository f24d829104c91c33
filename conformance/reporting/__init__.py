"""What a run tells. From the ground up, each room knowing only those before it:

- `record`: a run as data, as in report.json; `evidence`: what one failure is seen by, as data;
- `failure`: one failure as a text and as an exception; `results`: verdicts that are committed;
- `picture`: the evidence drawn; `page`: a report as one HTML file; `output`: the folder of both;
- `session`: a pytest session, in the terminal and in files; `command`: `python -m conformance report`.
"""
