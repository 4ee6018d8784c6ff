"""Makes what schemathesis sends worth sending: an object under the name that its path says."""

import re

import schemathesis
import yaml

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


# PyYAML writes YAML 1.1, where 1E100 is text; in YAML 1.2 it is a number. Quoted, text is text to both.
def quoted(dumper, text):
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


for dumper in (yaml.SafeDumper, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    dumper.add_representer(str, quoted)


@schemathesis.hook
def map_case(context, case):
    if case.method.upper() != "PUT" or not isinstance(case.body, dict):
        return case
    metadata = case.body.get("metadata")
    for field in ("name", "namespace"):
        said = (case.path_parameters or {}).get(field)
        # Only where both have the right form: what is wrong on purpose stays wrong.
        if (
            isinstance(metadata, dict)
            and isinstance(said, str)
            and LABEL.fullmatch(said)
            and isinstance(metadata.get(field), str)
            and LABEL.fullmatch(metadata[field])
        ):
            metadata[field] = said
    return case
