# shellcheck shell=bash disable=SC2154
# Policies: refused with the reason where they are wrong, in force in running sidecars within seconds, and told so.

part_55_policies() {
    promise an_invalid_policy_is_refused_with_what_to_write_instead
    promise a_new_policy_takes_effect_in_running_sidecars_within_seconds
    promise a_policys_status_says_how_many_sidecars_run_it
    promise a_policy_for_nothing_says_that_its_target_is_missing
    promise a_misspelt_annotation_is_refused
}

deny() { # NAME SERVICE PATH
    cat <<YAML
apiVersion: policy.weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: $1, namespace: $IN}
spec:
  targetRefs: [{kind: Service, name: $2}]
  action: Deny
  rules:
  - to: [{paths: ["$3"]}]
YAML
}

an_invalid_policy_is_refused_with_what_to_write_instead() {
    local message
    message=$(deny wrong echo '/users/%7E' | applied 2>&1 || true)
    is "$message" '*spec.rules?0?.to?0?.paths?0?*/users/%7E*normal form*Write ?/users/~?*'
    [[ -z $(kubectl -n "$IN" get authorizationpolicies -o name) ]]
    echo "$message"
}

a_new_policy_takes_effect_in_running_sidecars_within_seconds() {
    local on off started
    answers '200 *' "$IN" client GET "http://echo.$IN.svc/users/secret" >/dev/null
    started=$(now)
    deny no-secrets echo '/users/secret' | applied
    within 10 answers "403 *AuthorizationPolicy $IN/no-secrets*" "$IN" client GET "http://echo.$IN.svc/users/secret" >/dev/null
    on=$(($(now) - started))
    answers '200 *' "$IN" client GET "http://echo.$IN.svc/users/1" >/dev/null
    started=$(now)
    deny no-secrets echo '/users/other' | applied
    within 10 answers '200 *' "$IN" client GET "http://echo.$IN.svc/users/secret" >/dev/null
    off=$(($(now) - started))
    echo "refused $on ms after the policy was made, allowed again $off ms after it was edited, time of the calls included"
}

# Milliseconds.
now() {
    echo $((${EPOCHREALTIME/[.,]/} / 1000))
}

condition() { # NAMESPACE POLICY TYPE
    field "$1" "authorizationpolicy/$2" "{.status.conditions[?(@.type=='$3')].status} {.status.conditions[?(@.type=='$3')].message}"
}

condition_is() { # PATTERN NAMESPACE POLICY TYPE
    is "$(condition "${@:2}")" "$1"
}

a_policys_status_says_how_many_sidecars_run_it() {
    condition_is 'True *' "$SHOP" orders-takes-stock Accepted
    condition_is 'True *' "$SHOP" orders-takes-stock ResolvedRefs
    within 30 condition_is 'True 2 of 2 sidecars *' "$SHOP" orders-takes-stock Programmed
    kubectl -n "$SHOP" get authorizationpolicies orders-takes-stock --no-headers
}

a_policy_for_nothing_says_that_its_target_is_missing() {
    deny nowhere nobody '/*' | applied
    within 30 condition_is 'False *nobody*' "$IN" nowhere ResolvedRefs >/dev/null
    condition "$IN" nowhere ResolvedRefs
    kubectl -n "$IN" delete authorizationpolicy nowhere no-secrets >/dev/null
}

a_misspelt_annotation_is_refused() {
    local message
    message=$(kubectl annotate namespace "$OUT" weft.dev/injekt=enabled 2>&1 || true)
    is "$message" '*weft.dev/injekt*weft.dev/inject*'
    echo "$message"
}
