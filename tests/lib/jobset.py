"""What a JobSet may contain, jobset.x-k8s.io/v1alpha2.

Facts of the release that docs/how_to/pods.md installs: the fields of its CRD,
and what its admission webhook checks. The Jobs in it are checked with the
schemas of Kubernetes (`launch_files.jobs`).
"""

import re
from typing import Any

import jsonschema

RELEASE = "v0.8.0"
_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_INDEX, _COUNT = {"type": "integer"}, {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}
_MAX_NAME = 63
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def _object(*required: str, **fields: Any) -> dict[str, Any]:
  return {
    "type": "object",
    "properties": fields,
    "required": list(required),
    "additionalProperties": False,
  }


def _list(item: dict[str, Any], **limits: int) -> dict[str, Any]:
  return {"type": "array", "items": item, **limits}


_RULE = _object(
  *("name", "action"),
  name={
    "type": "string",
    "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    "maxLength": 128,
  },
  action={
    "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
  },
  onJobFailureReasons=_list(
    {
      "enum": [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
      ]
    }
  ),
  targetReplicatedJobs=_TEXTS,
)
_DEPENDENCY = _object(
  *("name", "status"), name=_TEXT, status={"enum": ["Ready", "Complete"]}
)
_REPLICATED_JOB = _object(
  *("name", "template"),
  name=_TEXT,
  replicas=_COUNT,
  dependsOn=_list(_DEPENDENCY, maxItems=1),
  template={
    "type": "object",
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}},
    "required": ["spec"],
    "additionalProperties": False,
  },
)
_SPEC = _object(
  "replicatedJobs",
  coordinator=_object(
    "replicatedJob", replicatedJob=_TEXT, jobIndex=_INDEX, podIndex=_INDEX
  ),
  failurePolicy=_object(
    maxRestarts={"type": "integer"},
    restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
    rules=_list(_RULE),
  ),
  managedBy=_TEXT,
  network=_object(
    enableDNSHostnames=_FLAG, publishNotReadyAddresses=_FLAG, subdomain=_TEXT
  ),
  replicatedJobs=_list(_REPLICATED_JOB),
  startupPolicy=_object(
    "startupPolicyOrder", startupPolicyOrder={"enum": ["AnyOrder", "InOrder"]}
  ),
  successPolicy=_object(
    "operator",
    operator={"enum": ["All", "Any"]},
    targetReplicatedJobs=_TEXTS,
  ),
  suspend=_FLAG,
  ttlSecondsAfterFinished=_COUNT,
)
SCHEMA = _object(
  *("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata={"type": "object", "required": ["name"]},
  spec=_SPEC,
)


def problems(document: Any) -> list[str]:
  """What the cluster would refuse in a JobSet; empty if nothing."""
  errors = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))
  if errors:
    return [f"{each.json_path}: {each.message}" for each in errors]
  spec = document["spec"]
  replicated = {job["name"]: job for job in spec["replicatedJobs"]}
  found = []
  if len(replicated) < len(spec["replicatedJobs"]):
    found.append("two replicated jobs have one name")
  rules = spec.get("failurePolicy", {}).get("rules", [])
  if len({rule["name"] for rule in rules}) < len(rules):
    found.append("two rules have one name")
  targets = [*rules, spec.get("successPolicy", {})]
  named = {n for each in targets for n in each.get("targetReplicatedJobs", [])}
  named |= {
    before["name"]
    for job in replicated.values()
    for before in job.get("dependsOn", [])
  }
  found += [f"no replicated job {name}" for name in named - replicated.keys()]
  for name, job in replicated.items():
    last = job.get("replicas", 1) - 1
    pods = job["template"]["spec"].get("completions", 1)
    pod = f"{document['metadata']['name']}-{name}-{last}-{pods - 1}-abcde"
    if not _NAME.fullmatch(pod) or len(pod) > _MAX_NAME:
      found.append(f"{pod} is no name of a pod")
  return found
