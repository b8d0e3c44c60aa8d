# shellcheck shell=bash disable=SC2154
# Golden signals, and what the command line makes of them.

part_40_metrics() {
    promise a_sidecar_tells_its_golden_signals
    promise the_control_plane_tells_its_golden_signals
    promise weft_get_shows_who_calls_whom
}

has_series() { # TEXT SERIES...
    local text=$1 series missing=''
    shift
    for series; do
        grep -q "^${series}[{ ]" <<<"$text" || missing+=" $series"
    done
    is "${missing:-all}" all
    echo "$# names, $(grep -vc '^#' <<<"$text") series"
}

a_sidecar_tells_its_golden_signals() {
    local text
    text=$(scrape "$(field "$SHOP" "pod/$(first_pod "$SHOP" app=orders)" '{.status.podIP}')")
    has_series "$text" weft_requests_total weft_request_duration_seconds_bucket weft_overhead_seconds_count \
        weft_authorization_decisions_total weft_rate_limit_decisions_total \
        weft_certificate_expiry_timestamp_seconds process_resident_memory_bytes
    grep -q '^weft_control_plane_connected 1' <<<"$text" || wrong "weft_control_plane_connected is not 1"
    text=$(scrape "$(field "$SHOP" "pod/$(first_pod "$SHOP" app=inventory)" '{.status.podIP}')")
    has_series "$text" weft_tcp_connections_total weft_tcp_open_connections weft_tcp_bytes_total
}

the_control_plane_tells_its_golden_signals() {
    local text ip
    for ip in $(kubectl -n "$SYSTEM" get pods -l weft.dev/component=control-plane -o 'jsonpath={.items[*].status.podIP}'); do
        text=$(scrape "$ip")
        has_series "$text" weft_streams weft_updates_sent_total weft_config_errors weft_leader \
            weft_admission_reviews_total weft_trust_anchor_expiry_timestamp_seconds
    done
}

weft_get_shows_who_calls_whom() {
    "$weft" get edges -n "$SHOP" >"$scratch/edges"
    grep -Eq "$SHOP/orders +$SHOP/inventory .*yes" "$scratch/edges" || wrong "$(cat "$scratch/edges")"
    "$weft" get workloads -n "$SHOP" >"$scratch/workloads"
    grep -q 'inventory-' "$scratch/workloads" || wrong "$(cat "$scratch/workloads")"
    grep -E "$SHOP/orders +$SHOP/inventory" "$scratch/edges"
}
