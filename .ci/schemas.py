"""Makes the JSON schemas that kubeconform judges manifests by: of Kubernetes itself, and of CRDs.

schemas.py OUT FOLDER CRD...    FOLDER: schemas as the package kubernetes-validate ships them; CRD: files of YAML.
"""
import json
import pathlib
import sys

import yaml


def of_kubernetes(folder, out):
    """Files that refer to each other by name, not by an address to be fetched from."""
    for path in folder.glob("*.json"):
        schema = json.loads(path.read_text())
        schema.pop("$id", None)
        text = json.dumps(schema).replace('"/api/_definitions.json', '"_definitions.json')
        (out / path.name).write_text(text)


def strict(schema):
    """A field that the schema does not know is a mistake, though the API server would only drop it."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            strict(part)
    elif isinstance(schema, list):
        for part in schema:
            strict(part)
    return schema


def of_crds(files, out):
    for file in files:
        for crd in yaml.safe_load_all(pathlib.Path(file).read_text()):
            if not crd or crd.get("kind") != "CustomResourceDefinition":
                continue
            group = crd["spec"]["group"].split(".")[0]
            kind = crd["spec"]["names"]["kind"].lower()
            for version in crd["spec"]["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                # What any object has.
                schema["properties"].update({name: {} for name in ("apiVersion", "kind", "metadata", "status")})
                (out / f"{kind}-{group}-{version['name']}.json").write_text(json.dumps(schema))


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    of_kubernetes(pathlib.Path(sys.argv[2]), out)
    of_crds(sys.argv[3:], out)
