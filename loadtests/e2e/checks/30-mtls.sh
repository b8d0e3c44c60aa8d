# shellcheck shell=bash disable=SC2154
# Who calls is proven to the application, nothing between pods can be read, and the metrics say so.

part_30_mtls() {
    promise the_application_sees_the_proven_identity_of_its_caller
    promise nothing_on_the_wire_between_meshed_pods_can_be_read
    promise metrics_say_that_calls_came_over_tls
    promise the_same_holds_over_the_pods_other_address
}

the_application_sees_the_proven_identity_of_its_caller() {
    answers "200 {*By=spiffe://cluster.local/ns/$SHOP/sa/users;*URI=spiffe://cluster.local/ns/$SHOP/sa/orders*" \
        "$SHOP" load GET "http://orders.$SHOP.svc/orders/1" >/dev/null
    answers '200 {"caller":null*' "$OUT" client GET "http://echo.$OUT.svc/users/1" >/dev/null
    answers "200 {\"caller\":\"By=spiffe://cluster.local/ns/$IN/sa/echo;*URI=spiffe://cluster.local/ns/$IN/sa/client\"*" \
        "$IN" client GET "http://echo.$IN.svc/users/1"
}

# Listens on the node where the called pod runs, to a call in the clear outside the mesh (which it must be able to
# read, or it proves nothing), and to the same call inside.
nothing_on_the_wire_between_meshed_pods_can_be_read() {
    local marker="marker-$RANDOM$RANDOM" bare meshed
    listen "$OUT" "$marker"
    listen "$IN" "$marker"
    answers '200 *' "$OUT" client GET "http://echo.$OUT.svc/users/$marker" >/dev/null
    answers '200 *' "$IN" client GET "http://echo.$IN.svc/users/$marker" >/dev/null
    within 10 heard "$OUT" segments 4
    within 10 heard "$OUT" with_text 1 || skip "this node's interfaces do not show what its pods send: $(listener_log "$OUT")"
    within 10 heard "$IN" tls_records 2
    bare=$(listener_log "$OUT") meshed=$(listener_log "$IN")
    kubectl -n "$OUT" delete pod "listener-$IN" "listener-$OUT" --wait=false >/dev/null
    is "$meshed" '*"with_text":0*'
    echo "outside the mesh: $bare; inside: $meshed"
}

# A pod on the node's network that watches the wire between client and echo of a namespace.
listen() { # NAMESPACE TEXT
    local node
    node=$(field "$1" pod/echo '{.spec.nodeName}')
    applied <<YAML
apiVersion: v1
kind: Pod
metadata: {name: listener-$1, namespace: $OUT}
spec:
  hostNetwork: true
  nodeName: $node
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers:
  - name: app
    image: $(weft_image)
    imagePullPolicy: ${pull_policy:-IfNotPresent}
    args: [demo-client, watch, "$(pod_ip "$1" client)", "$(pod_ip "$1" echo)", "--text=$2"]
    securityContext:
      runAsUser: 0
      capabilities: {drop: [ALL], add: [NET_RAW]}
YAML
    ready "$OUT" "listener-$1" >/dev/null || skip "no pod may listen on this node: $(listener_log "$1")"
    within 20 heard "$1" segments 0 >/dev/null
}

listener_log() { # NAMESPACE
    kubectl -n "$OUT" logs "listener-$1" --tail=1
}

heard() { # NAMESPACE FIELD AT_LEAST
    local number
    number=$(count "$OUT" "listener-$1" "$2")
    [[ -n $number ]] && ((number >= $3))
}

metrics_say_that_calls_came_over_tls() {
    local series
    series=$(scrape "$(pod_ip "$IN" echo)" | grep '^weft_requests_total{')
    grep -q "source=\"client\".*tls=\"true\"" <<<"$series" || wrong "$series"
    if grep "source=\"client\".*tls=\"false\"" <<<"$series"; then return 1; fi
    grep "source=\"client\"" <<<"$series" | tail -n 1
}

# On clusters with IPv4 and IPv6.
the_same_holds_over_the_pods_other_address() {
    local other
    read -r _ other <<<"$(field "$IN" pod/echo '{.status.podIPs[*].ip}')"
    [[ -n $other ]] || skip "pods of this cluster have one address"
    [[ $other != *:* ]] || other="[$other]"
    answers '403 *' "$OUT" client GET "http://$other:8080/users/1"
    answers "200 *URI=spiffe://cluster.local/ns/$IN/sa/client*" "$IN" client GET "http://$other:8080/users/1"
}
