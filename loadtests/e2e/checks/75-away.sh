# shellcheck shell=bash disable=SC2154
# The control plane is away: nothing starts in the clear, nothing else is held up, and what runs goes on.

part_75_away() {
    promise while_the_control_plane_is_away_traffic_goes_on_and_no_bare_pod_starts
    promise when_it_is_back_pods_are_injected_and_policies_are_changed_again
}

while_the_control_plane_is_away_traffic_goes_on_and_no_bare_pod_starts() {
    no_request_is_lost_during take_control_plane_away
    cat "$scratch/refusal"
}

take_control_plane_away() {
    local where message
    kubectl -n "$SYSTEM" scale deployment weft-control-plane --replicas=0
    within 60 nobody_answers
    message=$(app "$IN" bare client demo-app users 2>&1 || true)
    is "$message" '*weft-injected*injector did not answer*weft.dev/inject: disabled*'
    echo "$message" | tail -n 1 >"$scratch/refusal"
    message=$(deny some echo '/*' | applied 2>&1 || true)
    is "$message" '*failed calling webhook*admission.weft.dev*'
    for where in "$OUT" kube-system; do
        grace=1 app "$where" weft-e2e-free default demo-app users
        ready "$where" weft-e2e-free
        is "$(containers "$where" weft-e2e-free)" ' app'
        kubectl -n "$where" delete pod weft-e2e-free --wait=false
    done
    # New connections too, not only those that are open.
    answers "200 *URI=spiffe://cluster.local/ns/$IN/sa/client*" "$IN" client GET "http://echo.$IN.svc/users/1"
}

nobody_answers() {
    is "$(kubectl -n "$SYSTEM" get pods -l weft.dev/component=control-plane -o name)" ''
}

when_it_is_back_pods_are_injected_and_policies_are_changed_again() {
    no_request_is_lost_during bring_control_plane_back
}

bring_control_plane_back() {
    kubectl -n "$SYSTEM" scale deployment weft-control-plane --replicas=2
    rolled_out "$SYSTEM" deployment/weft-control-plane
    grace=2 app "$IN" again client demo-app users
    ready "$IN" again
    is "$(containers "$IN" again)" '*weft-proxy app'
    deny no-again echo /users/again | applied
    # Also in sidecars that were there before.
    within 40 answers '403 *' "$IN" client GET "http://echo.$IN.svc/users/again"
    kubectl -n "$IN" delete authorizationpolicy no-again
}
