# shellcheck shell=bash disable=SC2154
# What is meant to end ends, sidecar and all.

part_45_jobs() {
    promise a_job_ends_by_itself_with_its_sidecar
    promise a_cron_jobs_job_ends_by_itself
    promise a_job_that_fails_is_told_apart
}

complete() { # NAMESPACE JOB
    kubectl -n "$1" wait --for=condition=Complete "job/$2" --timeout=90s >/dev/null
}

pods_of() { # NAMESPACE JOB
    kubectl -n "$1" get pods -l "batch.kubernetes.io/job-name=$2" --no-headers | awk '{print $1, $2, $3}' | paste -sd,
}

a_job_ends_by_itself_with_its_sidecar() {
    complete "$SHOP" buyer-1
    [[ $(kubectl -n "$SHOP" get pods -l batch.kubernetes.io/job-name=buyer-1 -o 'jsonpath={.items[*].spec.initContainers[*].name}') == *weft-proxy* ]]
    pods_of "$SHOP" buyer-1
}

cron_job() { # NAME ARGUMENT...
    local name=$1
    shift
    cat <<YAML
apiVersion: batch/v1
kind: CronJob
metadata: {name: $name, namespace: $IN}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
$(restart_policy=Never pod_spec default "$@" | indented 10)
YAML
}

a_cron_jobs_job_ends_by_itself() {
    cron_job nightly demo-client call "http://echo.$IN.svc/users/1" | applied
    kubectl -n "$IN" create job --from=cronjob/nightly nightly-now >/dev/null
    complete "$IN" nightly-now
    is "$(kubectl -n "$IN" logs job/nightly-now -c app)" "200 *URI=spiffe://cluster.local/ns/$IN/sa/default*"
    pods_of "$IN" nightly-now
}

a_job_that_fails_is_told_apart() {
    cron_job hopeless demo-client call "http://nobody.$IN.svc/" | applied
    kubectl -n "$IN" create job --from=cronjob/hopeless hopeless-now >/dev/null
    kubectl -n "$IN" wait --for=condition=Failed job/hopeless-now --timeout=90s >/dev/null
    pods_of "$IN" hopeless-now
}
