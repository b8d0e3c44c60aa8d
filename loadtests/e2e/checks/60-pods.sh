# shellcheck shell=bash disable=SC2154
# Pods of every kind: probed in each way, on the node's network, opted out, under the sidecar's own user.

part_60_pods() {
    make_pods
    promise http_tcp_grpc_and_exec_probes_work_though_nobody_is_allowed_in
    promise an_application_that_fails_is_not_ready_and_ready_again
    promise a_pod_on_the_nodes_network_is_left_alone_with_the_reason
    promise a_pod_that_opts_out_has_no_sidecar
    promise a_pod_under_the_sidecars_user_is_refused
    promise a_template_that_was_injected_offline_is_not_injected_twice
}

# All at once: they start while the first are looked at.
make_pods() {
    make_namespace weft-e2e-deny
    kubectl annotate namespace weft-e2e-deny weft.dev/inject=enabled weft.dev/default-policy=deny >/dev/null
    container_more=$(probe readinessProbe 'httpGet: {path: /ready, port: 8080}') grace=1 app weft-e2e-deny http probed demo-app users
    container_more=$(probe readinessProbe 'tcpSocket: {port: 8080}') grace=1 app weft-e2e-deny tcp probed demo-app users
    container_more=$(probe readinessProbe 'grpc: {port: 8080}') grace=1 app weft-e2e-deny grpc probed demo-app health
    container_more=$(probe readinessProbe 'exec: {command: [/weft, --version]}') grace=1 app weft-e2e-deny exec probed demo-app users
    make_checker
    pod_more='hostNetwork: true' grace=1 app "$IN" on-the-node client demo-client load "http://echo.$IN.svc/users/1" --rate 1
    pod_metadata=$'annotations:\n  weft.dev/inject: disabled' grace=1 app "$IN" opted-out client demo-app users
}

probe() { # KIND HANDLER
    printf '%s:\n  %s\n  periodSeconds: 1\n  timeoutSeconds: 5\n  failureThreshold: 2\n' "$1" "$2"
}

# Ready while it reaches the shop's PostgreSQL, which a policy of the shop lets it.
make_checker() {
    local password
    password=$(field "$SHOP" secret/postgres '{.data.password}')
    applied <<YAML
apiVersion: v1
kind: Secret
metadata: {name: postgres, namespace: weft-e2e-deny}
data: {password: $password}
YAML
    let_checker_in
    container_more="$(probe readinessProbe 'httpGet: {path: /ready, port: 8080}')
env:
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: postgres, key: password}}" \
        grace=1 app weft-e2e-deny checker checker demo-app inventory "--postgres=host=postgres.$SHOP.svc user=shop dbname=shop"
}

let_checker_in() {
    applied <<YAML
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: checker-reads, namespace: $SHOP}
spec:
  targetRefs: [{kind: Service, name: postgres}]
  action: Allow
  rules:
  - from: [{serviceAccounts: [weft-e2e-deny/checker]}]
    to: [{ports: [5432]}]
YAML
}

http_tcp_grpc_and_exec_probes_work_though_nobody_is_allowed_in() {
    ready weft-e2e-deny http tcp grpc exec >/dev/null
    answers '403 *' "$IN" client GET "http://$(pod_ip weft-e2e-deny http):8080/ready" >/dev/null
    [[ $(field weft-e2e-deny pod/grpc '{.spec.containers[0].readinessProbe}') == *4291* ]]
    kubectl -n weft-e2e-deny get pods http tcp grpc exec --no-headers | awk '{print $1, $2}' | paste -sd,
}

is_ready() { # STATUS NAMESPACE POD
    is "$(field "$2" "pod/$3" '{.status.conditions[?(@.type=="Ready")].status}')" "$1"
}

an_application_that_fails_is_not_ready_and_ready_again() {
    ready weft-e2e-deny checker >/dev/null
    kubectl -n "$SHOP" delete authorizationpolicy checker-reads >/dev/null
    within 30 is_ready False weft-e2e-deny checker
    field weft-e2e-deny pod/checker '{.status.conditions[?(@.type=="Ready")].message}'
    let_checker_in
    within 30 is_ready True weft-e2e-deny checker
    echo "without its database: not ready; with it: ready again"
}

a_pod_on_the_nodes_network_is_left_alone_with_the_reason() {
    ready "$IN" on-the-node >/dev/null
    is "$(containers "$IN" on-the-node)" ' app'
    field "$IN" pod/on-the-node '{.metadata.annotations.weft\.dev/inject-skipped}' >"$scratch/reason"
    is "$(cat "$scratch/reason")" 'host-network*'
    cat "$scratch/reason"
}

a_pod_that_opts_out_has_no_sidecar() {
    ready "$IN" opted-out >/dev/null
    is "$(containers "$IN" opted-out)" ' app'
    field "$IN" pod/opted-out '{.metadata.annotations.weft\.dev/inject-skipped}'
}

a_pod_under_the_sidecars_user_is_refused() {
    local message
    message=$(user=2102 app "$IN" same-user client demo-app users 2>&1 || true)
    is "$message" '*2102*'
    if kubectl -n "$IN" get pod same-user 2>/dev/null; then return 1; fi
    echo "$message"
}

# A pod with a sidecar as the control plane would give it now, without asking it.
inject_offline() { # NAMESPACE NAME
    kubectl -n "$SYSTEM" get configmap weft-injector -o 'jsonpath={.data.config\.yaml}' >"$scratch/config.yaml"
    grace=1 app_yaml "$1" "$2" client demo-app users >"$scratch/bare.yaml"
    "$weft" inject --config "$scratch/config.yaml" -f "$scratch/bare.yaml"
}

a_template_that_was_injected_offline_is_not_injected_twice() {
    inject_offline "$IN" offline >"$scratch/injected.yaml"
    grep -q weft-proxy "$scratch/injected.yaml" || wrong "$(cat "$scratch/injected.yaml")"
    applied <"$scratch/injected.yaml"
    ready "$IN" offline >/dev/null
    is "$(containers "$IN" offline)" "$(containers "$IN" client)"
    containers "$IN" offline
}
