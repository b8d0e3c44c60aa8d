# shellcheck shell=bash disable=SC2154
# orders-demo, and the test's own pods, in the mesh and outside.

part_20_shop() {
    make_own_namespaces
    promise every_pod_of_orders_demo_is_ready_with_a_sidecar
    start_own_pods
    promise an_order_from_outside_the_mesh_goes_through_nginx_to_postgresql
    promise weft_check_finds_nothing_wrong_in_the_meshed_namespaces
    promise load_from_inside_the_mesh_is_answered
}

make_own_namespaces() {
    local namespace
    for namespace in "$IN" "$OUT"; do
        make_namespace "$namespace"
    done
    kubectl annotate namespace "$IN" weft.dev/inject=enabled >/dev/null
}

every_pod_of_orders_demo_is_ready_with_a_sidecar() {
    local values pod bare
    mapfile -t values < <(image_values)
    [[ -z $nginx ]] || values+=(--set "front.image=$nginx")
    [[ -z $postgres ]] || values+=(--set "postgres.image=$postgres")
    helm install orders-demo "$root/charts/orders-demo" "${values[@]}" >/dev/null
    rolled_out "$SHOP" statefulset/postgres deployment/{orders,users,inventory,front} >/dev/null
    for pod in $(kubectl -n "$SHOP" get pods -o 'jsonpath={.items[*].metadata.name}'); do
        [[ $(containers "$SHOP" "$pod") == *weft-proxy* ]] || bare+=" $pod"
    done
    is "${bare:-none}" none
    kubectl -n "$SHOP" get pods --no-headers | awk '{print $1, $2}' | paste -sd,
}

# An application and a client on either side, and the load: a buyer who orders all the time.
start_own_pods() {
    local namespace
    for namespace in "$IN" "$OUT"; do
        grace=2 app "$namespace" client client demo-app users
        grace=2 app "$namespace" echo echo demo-app users
        kubectl -n "$namespace" create service clusterip echo --tcp=80:8080 >/dev/null
    done
    app "$SHOP" load buyer demo-client load --method POST --rate 12 "http://orders.$SHOP.svc/orders/42"
    ready "$IN" client echo >/dev/null
    ready "$OUT" client echo >/dev/null
    ready "$SHOP" load >/dev/null
}

stock() { # SKU
    kubectl -n "$SHOP" exec postgres-0 -c postgres -- \
        psql -h /var/run/postgresql -U shop -d shop -Atc "SELECT units FROM stock WHERE sku = '$1'"
}

an_order_from_outside_the_mesh_goes_through_nginx_to_postgresql() {
    local before after
    before=$(stock 4711)
    answers '200 {*"order":"4711"*"taken":1*' "$OUT" client POST "http://front.$SHOP.svc/orders/4711"
    after=$(stock 4711)
    ((after == before - 1)) || wrong "stock of 4711 was $before and is $after"
    echo "POST /orders/4711 by NGINX: 200, and PostgreSQL has $after of $before left"
}

weft_check_finds_nothing_wrong_in_the_meshed_namespaces() {
    weft_check_finds_nothing_wrong
}

load_from_inside_the_mesh_is_answered() {
    within 30 load_has_answers 30
    kubectl -n "$SHOP" logs load -c app --tail=1
}
