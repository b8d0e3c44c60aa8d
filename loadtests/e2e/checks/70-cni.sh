# shellcheck shell=bash disable=SC2154
# A namespace with Pod Security `restricted`, through the CNI plugin: nothing of a pod may change its network there.

part_70_cni() {
    make_namespace "$TIGHT"
    kubectl annotate namespace "$TIGHT" weft.dev/inject=enabled >/dev/null
    kubectl label namespace "$TIGHT" pod-security.kubernetes.io/enforce=restricted >/dev/null
    promise restricted_refuses_pods_that_need_net_admin
    $with_cni || return 0
    promise the_cni_agent_is_ready_on_every_node
    promise a_restricted_namespace_is_meshed_without_net_admin
    promise without_the_agent_no_meshed_pod_starts_and_pods_of_the_cluster_do
    promise when_the_agent_is_back_held_up_pods_start_meshed
    promise weft_check_finds_nothing_wrong_with_the_plugin
}

restricted_refuses_pods_that_need_net_admin() {
    local message
    message=$(app "$TIGHT" too-early client demo-app users 2>&1 || true)
    is "$message" '*violates PodSecurity "restricted*NET_ADMIN*'
    echo "$message"
}

# To the chart in `chart`, or again to this one.
upgrade() {
    local values
    mapfile -t values < <(image_values)
    [[ -z $cni_bin_dir ]] || values+=(--set "cni.binDir=$cni_bin_dir")
    [[ -z $cni_conf_dir ]] || values+=(--set "cni.confDir=$cni_conf_dir")
    helm upgrade weft "${chart:-$root/charts/weft}" -n "$SYSTEM" "${values[@]}" --set "cni.enabled=$with_cni" >/dev/null
}

the_cni_agent_is_ready_on_every_node() {
    upgrade
    rolled_out "$SYSTEM" daemonset/weft-cni
    # A kubelet brings a changed ConfigMap into a pod when it looks at the pod again; a changed annotation makes it look.
    kubectl -n "$SYSTEM" annotate pods -l weft.dev/component=control-plane --overwrite "weft-e2e/look=$RANDOM" >/dev/null
    within 120 every_replica_injects_for_the_plugin
    kubectl -n "$SYSTEM" get daemonset weft-cni --no-headers
}

# The Service answers with one replica or another.
every_replica_injects_for_the_plugin() {
    local _
    for _ in 1 2 3 4 5 6; do
        is "$(app_yaml "$IN" tried client demo-app users | kubectl create --dry-run=server -o yaml -f - 2>/dev/null)" '*weft-validate*' || return 1
    done
}

a_restricted_namespace_is_meshed_without_net_admin() {
    grace=2 app "$TIGHT" client client demo-app users
    grace=2 app "$TIGHT" echo echo demo-app users
    kubectl -n "$TIGHT" create service clusterip echo --tcp=80:8080 >/dev/null
    ready "$TIGHT" client echo >/dev/null
    is "$(field "$TIGHT" pod/client '{.spec..capabilities.add}')" ''
    is "$(containers "$TIGHT" client)" 'weft-validate weft-proxy app'
    answers "200 {\"caller\":\"By=spiffe://cluster.local/ns/$TIGHT/sa/echo;*URI=spiffe://cluster.local/ns/$TIGHT/sa/client\"*" \
        "$TIGHT" client GET "http://echo.$TIGHT.svc/users/1"
    # And with pods that an init container redirects, both ways.
    answers "200 *URI=spiffe://cluster.local/ns/$TIGHT/sa/client*" "$TIGHT" client GET "http://echo.$IN.svc/users/1" >/dev/null
    answers "200 *URI=spiffe://cluster.local/ns/$IN/sa/client*" "$IN" client GET "http://echo.$TIGHT.svc/users/1"
}

no_agent_runs() {
    is "$(kubectl -n "$SYSTEM" get pods -l weft.dev/component=cni -o name)" ''
}

held_up() { # NAMESPACE POD PATTERN
    is "$(kubectl -n "$1" get events --field-selector "involvedObject.name=$2" -o 'jsonpath={.items[*].message}')" "$3"
}

without_the_agent_no_meshed_pod_starts_and_pods_of_the_cluster_do() {
    kubectl -n "$SYSTEM" patch daemonset weft-cni --type merge \
        -p '{"spec":{"template":{"spec":{"nodeSelector":{"weft-e2e/nowhere":"true"}}}}}' >/dev/null
    within 60 no_agent_runs
    grace=2 app "$TIGHT" late client demo-app users
    grace=1 app kube-system weft-e2e default demo-app users
    within 60 held_up "$TIGHT" late '*weft-cni*'
    ready kube-system weft-e2e >/dev/null
    kubectl -n kube-system delete pod weft-e2e --wait=false >/dev/null
    is "$(field "$TIGHT" pod/late '{.status.podIP}{.status.containerStatuses[*].state.running}')" ''
    # What runs goes on.
    answers '200 *' "$TIGHT" client GET "http://echo.$TIGHT.svc/users/1" >/dev/null
    kubectl -n "$TIGHT" get events --field-selector involvedObject.name=late,type=Warning -o 'jsonpath={.items[0].message}'
}

when_the_agent_is_back_held_up_pods_start_meshed() {
    kubectl -n "$SYSTEM" patch daemonset weft-cni --type json \
        -p '[{"op":"remove","path":"/spec/template/spec/nodeSelector/weft-e2e~1nowhere"}]' >/dev/null
    rolled_out "$SYSTEM" daemonset/weft-cni >/dev/null
    ready "$TIGHT" late >/dev/null
    answers "200 *URI=spiffe://cluster.local/ns/$TIGHT/sa/client*" "$TIGHT" late GET "http://echo.$IN.svc/users/1"
}

weft_check_finds_nothing_wrong_with_the_plugin() {
    weft_check_finds_nothing_wrong
}
