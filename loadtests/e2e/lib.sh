# shellcheck shell=bash disable=SC2154
# What the checks are written with: promises, waiting without sleeping blindly, pods, calls, ledgers.

# Namespaces of the test's own: in the mesh, outside it, and one that enforces Pod Security `restricted`.
readonly IN=weft-e2e OUT=weft-e2e-outside TIGHT=weft-e2e-restricted SHOP=shop SYSTEM=weft-system
readonly SKIPPED=77

passed=0 failed=0 skipped=0 told=false
scratch=$(mktemp -d)

# --- promises -----------------------------------------------------------------

# Runs the function $1, whose name is what it promises. The last lines that it prints are the evidence. It fails by its
# exit code, and is skipped by `skip`.
promise() {
    local name=${1//_/ } status evidence started=$SECONDS
    set +e
    evidence=$(set -e; "$@" 2>&1)
    status=$?
    set -e
    case $status in
        0) passed=$((passed + 1)); printf 'ok %s (%d s): %s\n' "$name" $((SECONDS - started)) "$(tail -n 2 <<<"$evidence" | cut -c 1-400 | paste -sd'|' | sed 's/|/; /g')" ;;
        "$SKIPPED") skipped=$((skipped + 1)); printf 'skipped %s: %s\n' "$name" "$(tail -n 1 <<<"$evidence")" ;;
        *)
            failed=$((failed + 1))
            printf 'FAILED %s (%d s)\n' "$name" $((SECONDS - started))
            tail -n 25 <<<"$evidence" | cut -c 1-2000 | sed 's/^/    /'
            ;;
    esac
}

skip() {
    echo "$*"
    exit "$SKIPPED"
}

# Fails the promise.
wrong() {
    echo "$*"
    exit 1
}

summary() {
    told=true
    printf '%d passed, %d failed, %d skipped (%d s)\n' "$passed" "$failed" "$skipped" "$SECONDS"
    ((failed == 0))
}

# What is left is taken away, whatever happened.
leave() {
    local status=$1
    $told || { echo "ended before all was tried"; summary || true; }
    if ! $keep && (($(helm_releases) > 0)); then
        echo "# taking everything away"
        (uninstall_everything) >/dev/null 2>&1 || true
    fi
    rm -rf "$scratch"
    exit "$status"
}

# --- waiting ------------------------------------------------------------------

# Runs a command until it succeeds, for at most $1 seconds; prints what it printed last.
within() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1)) output
    shift
    until output=$("$@" 2>&1); do
        if ((SECONDS >= deadline)); then
            printf 'not within the time: %s\n%s\n' "$*" "$output"
            return 1
        fi
        sleep 0.3
    done
    [[ -z $output ]] || printf '%s\n' "$output"
}

# Succeeds if $1 matches the pattern $2, else says so.
is() { # TEXT PATTERN
    # shellcheck disable=SC2053
    [[ $1 == $2 ]] && return
    printf 'expected %s\nbut saw  %s\n' "$2" "${1:0:2000}"
    return 1
}

# --- cluster ------------------------------------------------------------------

require_tools() {
    local tool
    for tool in kubectl helm; do
        command -v "$tool" >/dev/null || { echo "there is no $tool on PATH" >&2; exit 2; }
    done
    for tool in "$weft" "$root/target/release/weft" "$root/target/debug/weft" "$(command -v weft || true)"; do
        [[ -x $tool ]] && { weft=$tool; return; }
    done
    echo "there is no weft: cargo build -p weft, or --weft FILE" >&2
    exit 2
}

require_clean_cluster() {
    kubectl version >/dev/null || { echo "no cluster answers: set KUBECONFIG" >&2; exit 2; }
    if (($(helm_releases) > 0)) || kubectl get crd -o name | grep -q weft; then
        echo "Weft is installed in this cluster already; this test installs and uninstalls it" >&2
        exit 2
    fi
}

helm_releases() {
    helm list --all-namespaces --short --filter '^(weft|orders-demo)$' | wc -l
}

# Options for helm that both charts take.
image_values() {
    [[ -z $registry ]] || printf -- '--set\nimage.registry=%s\n' "$registry"
    [[ -z $tag ]] || printf -- '--set\nimage.tag=%s\n' "$tag"
    [[ -z $pull_policy ]] || printf -- '--set\nimage.pullPolicy=%s\n' "$pull_policy"
}

weft_image() {
    kubectl -n "$SYSTEM" get deployment weft-control-plane -o 'jsonpath={.spec.template.spec.containers[0].image}'
}

rolled_out() { # NAMESPACE KIND/NAME...
    local namespace=$1 name
    shift
    for name; do
        kubectl -n "$namespace" rollout status "$name" --timeout=150s
    done
}

field() { # NAMESPACE KIND/NAME JSONPATH
    kubectl -n "$1" get "$2" -o "jsonpath=$3"
}

containers() { # NAMESPACE POD
    field "$1" "pod/$2" '{.spec.initContainers[*].name} {.spec.containers[*].name}'
}

# Makes or changes what is on standard input. The server merges, so that no object carries a copy of itself.
applied() {
    kubectl apply --server-side -f - >/dev/null
}

make_namespace() { # NAMESPACE
    kubectl create namespace "$1" >/dev/null
    kubectl label namespace "$1" weft-e2e=true >/dev/null
}

# A pod of Weft's image that runs an application of the demo or its client, as Pod Security `restricted` asks. What is
# on standard input is added to its spec's container, in YAML.
app() { # NAMESPACE NAME SERVICE_ACCOUNT ARGUMENT...
    app_yaml "$@" | applied
}

app_yaml() {
    local namespace=$1 name=$2 account=$3 argument
    shift 3
    cat <<YAML
apiVersion: v1
kind: ServiceAccount
metadata: {name: $account, namespace: $namespace}
automountServiceAccountToken: false
---
apiVersion: v1
kind: Pod
metadata:
  name: $name
  namespace: $namespace
  labels: {app: $name}
$(indented 2 <<<"${pod_metadata:-}")
spec:
$(pod_spec "$account" "$@" | indented 2)
YAML
}

pod_spec() { # SERVICE_ACCOUNT ARGUMENT...
    local account=$1 argument
    shift
    cat <<YAML
serviceAccountName: $account
automountServiceAccountToken: false
restartPolicy: ${restart_policy:-Always}
terminationGracePeriodSeconds: ${grace:-30}
$(printf '%s\n' "${pod_more:-}")
containers:
- name: app
  image: $(weft_image)
  imagePullPolicy: ${pull_policy:-IfNotPresent}
  args:
$(for argument; do printf '  - "%s"\n' "$argument"; done)
  securityContext:
    runAsNonRoot: true
    runAsUser: ${user:-10001}
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
$(indented 2 <<<"${container_more:-}")
YAML
}

indented() { # SPACES
    local spaces
    printf -v spaces '%*s' "$1" ''
    sed "s/^\(.\)/$spaces\1/"
}

ready() { # NAMESPACE POD...
    local namespace=$1
    shift
    kubectl -n "$namespace" wait --for=condition=Ready "${@/#/pod/}" --timeout=90s
}

# --- calls and load -----------------------------------------------------------

# One call from inside a pod: `200 body`, or why there was no answer.
call() { # NAMESPACE POD[/CONTAINER] METHOD URL
    local container=app
    [[ $2 != */*/* ]] || container=${2##*/}
    kubectl -n "$1" exec "${2%/"$container"}" -c "$container" -- /weft demo-client call --method "$3" "$4" || true
}

# A call that must be answered as $1 says.
answers() { # PATTERN NAMESPACE POD METHOD URL
    local answer
    answer=$(call "${@:2}")
    is "$answer" "$1" && printf '%s %s: %s\n' "$4" "$5" "$(tr -s '\n ' ' ' <<<"${answer:0:300}")"
}

pod_ip() { # NAMESPACE POD
    field "$1" "pod/$2" '{.status.podIP}'
}

first_pod() { # NAMESPACE SELECTOR
    kubectl -n "$1" get pods -l "$2" --field-selector=status.phase=Running -o 'jsonpath={.items[0].metadata.name}'
}

# The metrics of a pod, scraped from outside the mesh as Prometheus does.
scrape() { # IP
    call "$OUT" client GET "http://$1:4291/metrics"
}

# A number of the last line of a client's log.
count() { # NAMESPACE POD FIELD
    kubectl -n "$1" logs "$2" -c app --tail=1 | sed -nE "s/.*\"$3\":([0-9]+).*/\1/p"
}

load_has_answers() { # NUMBER
    (($(count "$SHOP" load ok) >= $1))
}

# Does something while the load goes on, and demands that no request of it was lost.
no_request_is_lost_during() { # COMMAND...
    local ok failed_before lost sent_before sent status
    sent_before=$(count "$SHOP" load sent) failed_before=$(count "$SHOP" load failed)
    set +e
    (set -e; "$@") >"$scratch/during" 2>&1
    status=$?
    set -e
    ((status == 0)) || wrong "$(cat "$scratch/during")"
    # A request that hangs fails after 10 s; those after it are answered before.
    within 30 load_has_answers $(($(count "$SHOP" load ok) + 20)) >/dev/null
    sent=$(($(count "$SHOP" load sent) - sent_before)) lost=$(($(count "$SHOP" load failed) - failed_before))
    ok=$((sent - lost))
    echo "sent $sent, ok $ok, failed $lost"
    ((lost == 0 && ok > 0)) || wrong "$(kubectl -n "$SHOP" logs load -c app --tail=1)"
}
