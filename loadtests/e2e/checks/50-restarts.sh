# shellcheck shell=bash disable=SC2154
# Everything that runs is replaced under load, and no request is lost.

part_50_restarts() {
    promise a_rolling_restart_of_orders_loses_no_request
    promise a_rolling_restart_of_inventory_loses_no_request
    promise a_rolling_restart_of_the_control_plane_loses_no_request
    promise deleting_a_pod_under_load_loses_no_request
    promise scaling_up_and_down_under_load_loses_no_request
}

restart() { # NAMESPACE DEPLOYMENT...
    local namespace=$1
    shift
    kubectl -n "$namespace" rollout restart "${@/#/deployment/}"
    rolled_out "$namespace" "${@/#/deployment/}"
    within 90 no_pod_is_ending "$namespace"
}

no_pod_is_ending() { # NAMESPACE
    ! kubectl -n "$1" get pods --no-headers | grep Terminating
}

a_rolling_restart_of_orders_loses_no_request() {
    no_request_is_lost_during restart "$SHOP" orders
}

a_rolling_restart_of_inventory_loses_no_request() {
    no_request_is_lost_during restart "$SHOP" inventory
}

a_rolling_restart_of_the_control_plane_loses_no_request() {
    no_request_is_lost_during restart "$SYSTEM" weft-control-plane
}

deleting_a_pod_under_load_loses_no_request() {
    no_request_is_lost_during delete_one_inventory
}

delete_one_inventory() {
    kubectl -n "$SHOP" delete pod "$(first_pod "$SHOP" app=inventory)" --timeout=90s
    rolled_out "$SHOP" deployment/inventory
}

scaling_up_and_down_under_load_loses_no_request() {
    no_request_is_lost_during scale_inventory 4 2
}

scale_inventory() { # REPLICAS...
    local replicas
    for replicas; do
        kubectl -n "$SHOP" scale deployment inventory --replicas="$replicas"
        rolled_out "$SHOP" deployment/inventory
    done
    within 90 no_pod_is_ending "$SHOP"
}
