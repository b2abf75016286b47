"""What leaves the audit log for others to check: FHIR, CSV, evidence bundles, pages.

Pure: opened events in, texts and files' contents out. Nothing here opens a socket or a key.

- `event`: one opened event with its place and proof
- `purposes`: the codes of purposes of use, in words, and which of them are treatment and the like
- `fhir`: FHIR R4 AuditEvent (IHE BALP)
- `csv`: one row an event
- `bundle`, `page`: an evidence bundle that checks itself in a browser and with tlog tools
- `explain`: one event on one page
"""
