# shellcheck shell=bash disable=SC2154
# The next version of the chart: control plane first, then sidecars as their pods restart, under load.

part_80_upgrade() {
    inject_offline "$IN" old-sidecar >"$scratch/old-sidecar.yaml"
    promise upgrading_the_control_plane_under_old_sidecars_loses_no_request
    promise old_sidecars_take_policies_from_the_new_control_plane
    promise an_old_sidecar_that_starts_late_gets_its_certificate_from_the_new_control_plane
    promise restarting_pods_into_the_new_sidecar_loses_no_request
    promise the_whole_run_lost_no_request_and_postgresql_has_each_order_once
}

# The chart under the next minor version.
next_chart() {
    local version
    version=$(sed -nE 's/^appVersion: *"?([^"]+)"?/\1/p' "$root/charts/weft/Chart.yaml")
    IFS=. read -r major minor _ <<<"$version"
    version=$major.$((minor + 1)).0
    rm -rf "$scratch/next"
    cp -r "$root/charts/weft" "$scratch/next"
    sed -i "s/^version:.*/version: $version/; s/^appVersion:.*/appVersion: $version/" "$scratch/next/Chart.yaml"
}

upgrading_the_control_plane_under_old_sidecars_loses_no_request() {
    next_chart
    no_request_is_lost_during upgrade_to_next
    echo "$(weft_image), chart $(sed -n 's/^version: //p' "$scratch/next/Chart.yaml")"
}

upgrade_to_next() {
    # The label of the version makes new pods, whatever image is in them.
    chart=$scratch/next tag=${next_tag:-$tag} upgrade
    rolled_out "$SYSTEM" deployment/weft-control-plane
    if $with_cni; then rolled_out "$SYSTEM" daemonset/weft-cni; fi
    within 60 no_pod_is_ending "$SYSTEM"
}

old_sidecars_take_policies_from_the_new_control_plane() {
    deny after-upgrade echo /users/upgraded | applied
    within 40 answers '403 *after-upgrade*' "$IN" client GET "http://echo.$IN.svc/users/upgraded"
    kubectl -n "$IN" delete authorizationpolicy after-upgrade >/dev/null
    "$weft" version | paste -sd' ' | tr -s ' '
}

an_old_sidecar_that_starts_late_gets_its_certificate_from_the_new_control_plane() {
    applied <"$scratch/old-sidecar.yaml"
    ready "$IN" old-sidecar >/dev/null
    answers "200 *URI=spiffe://cluster.local/ns/$IN/sa/client*" "$IN" old-sidecar GET "http://echo.$IN.svc/users/1"
    field "$IN" pod/old-sidecar '{.spec.initContainers[?(@.name=="weft-proxy")].image}'
}

restarting_pods_into_the_new_sidecar_loses_no_request() {
    within 120 every_replica_injects_the_next_sidecar
    no_request_is_lost_during restart "$SHOP" orders users inventory
    echo "orders has $(field "$SHOP" "pod/$(first_pod "$SHOP" app=orders)" '{.spec.initContainers[?(@.name=="weft-proxy")].image}')"
}

every_replica_injects_the_next_sidecar() {
    [[ -z $next_tag ]] || is "$(app_yaml "$IN" tried client demo-app users | kubectl create --dry-run=server -o yaml -f - 2>/dev/null)" "*weft-proxy:$next_tag*"
}

the_whole_run_lost_no_request_and_postgresql_has_each_order_once() {
    local ledger ok taken
    kubectl -n "$SHOP" get pod load -o name >/dev/null
    # Its last line, after it was told to stop: everything is answered then.
    kubectl -n "$SHOP" logs load -c app --follow --tail=1 >"$scratch/ledger" &
    kubectl -n "$SHOP" delete pod load --timeout=60s >/dev/null
    wait $!
    ledger=$(grep '"sent"' "$scratch/ledger" | tail -n 1)
    ok=$(sed -nE 's/.*"ok":([0-9]+).*/\1/p' <<<"$ledger")
    taken=$((1000000 - $(stock 42)))
    is "$ledger" '*"failed":0,*'
    ((taken == ok)) || wrong "$ok orders were answered, PostgreSQL has $taken"
    echo "$ledger; PostgreSQL has $taken orders"
}
