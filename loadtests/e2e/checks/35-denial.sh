# shellcheck shell=bash disable=SC2154
# What nobody may, named by the policy that forbids it; and how often.

part_35_denial() {
    promise a_call_that_no_policy_allows_gets_403_and_says_so
    promise a_call_that_a_deny_policy_forbids_gets_403_and_names_it
    promise a_stranger_without_a_sidecar_is_refused
    promise the_sidecar_of_another_pod_is_no_open_proxy
    promise a_burst_gets_429_and_others_are_not_harmed
}

a_call_that_no_policy_allows_gets_403_and_says_so() {
    answers "403 *$SHOP/orders-takes-stock*" "$IN" client GET "http://inventory.$SHOP.svc/stock/4711"
}

a_call_that_a_deny_policy_forbids_gets_403_and_names_it() {
    answers "403 *AuthorizationPolicy $SHOP/nobody-deletes-stock*" \
        "$SHOP" "deployment/orders/orders" DELETE "http://inventory.$SHOP.svc/stock/4711"
}

a_stranger_without_a_sidecar_is_refused() {
    answers '403 *' "$OUT" client GET "http://postgres.$SHOP.svc:5432/"
    answers '403 *' "$OUT" client GET "http://inventory.$SHOP.svc/stock/4711"
}

the_sidecar_of_another_pod_is_no_open_proxy() {
    local ip port answer
    ip=$(pod_ip "$IN" echo)
    for port in 4240 4243; do
        answer=$(call "$OUT" client GET "http://$ip:$port/users/1")
        is "$answer" 'no answer*'
    done
    answers '403 *' "$OUT" client GET "http://$ip:4291/config"
}

# Another pod of the front's identity asks as fast as it can; the load is the buyer's, whom the limit counts apart.
a_burst_gets_429_and_others_are_not_harmed() {
    local limited
    no_request_is_lost_during burst
    limited=$(kubectl -n "$SHOP" logs burst -c app --tail=1)
    kubectl -n "$SHOP" delete pod burst --wait=false >/dev/null
    is "$limited" '*"429":*'
    is "$limited" '*"errors":{}*'
    echo "the burst: $limited; the load meanwhile lost nothing"
}

burst() {
    restart_policy=Never app "$SHOP" burst front demo-client load --requests 400 --connections 16 "http://orders.$SHOP.svc/orders/1"
    kubectl -n "$SHOP" wait --for=jsonpath='{.status.phase}'=Succeeded pod/burst --timeout=60s
}
