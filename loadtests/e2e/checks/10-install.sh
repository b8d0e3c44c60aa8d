# shellcheck shell=bash disable=SC2154
# The chart, without values but for where images are.

part_10_install() {
    promise the_cluster_can_take_weft_says_weft_check_pre
    promise the_chart_installs_and_rolls_out
    promise weft_check_finds_nothing_wrong
}

the_cluster_can_take_weft_says_weft_check_pre() {
    "$weft" check --pre >"$scratch/pre" || wrong "$(cat "$scratch/pre")"
    tail -n 1 "$scratch/pre"
}

the_chart_installs_and_rolls_out() {
    local values
    mapfile -t values < <(image_values)
    helm install weft "$root/charts/weft" -n "$SYSTEM" --create-namespace "${values[@]}" >/dev/null
    rolled_out "$SYSTEM" deployment/weft-control-plane
}

weft_check_finds_nothing_wrong() {
    "$weft" check --quiet >"$scratch/check" || wrong "$(cat "$scratch/check")"
    grep . "$scratch/check" | paste -sd' ' | tr -s ' '
}
