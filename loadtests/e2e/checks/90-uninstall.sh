# shellcheck shell=bash disable=SC2154
# Nothing is left behind, in the API or on the nodes, and pods run without the mesh.

part_90_uninstall() {
    promise uninstalling_takes_everything_away
    promise no_object_of_the_cluster_speaks_of_weft
    promise nothing_of_the_plugin_is_left_on_the_nodes
    promise pods_of_annotated_namespaces_start_without_the_mesh
    remove_namespaces
}

own_namespaces() {
    kubectl get namespaces -l weft-e2e=true -o name
}

remove_namespaces() {
    own_namespaces | xargs -r kubectl delete --timeout=120s >/dev/null
    kubectl delete namespace "$SYSTEM" --ignore-not-found --timeout=120s >/dev/null
    kubectl -n kube-system delete pod weft-e2e weft-e2e-free --ignore-not-found --wait=false >/dev/null
}

uninstall_everything() {
    helm uninstall orders-demo --ignore-not-found --wait --timeout=120s
    helm uninstall weft -n "$SYSTEM" --ignore-not-found --wait --timeout=120s
    remove_namespaces
}

uninstalling_takes_everything_away() {
    weft_image >"$scratch/image"
    helm uninstall orders-demo --wait --timeout=120s
    helm uninstall weft -n "$SYSTEM" --wait --timeout=120s
}

# Every kind of object, in every namespace, but for two that are not Weft's to take away: the namespaces themselves, and
# pods that run, which keep their sidecars until they are made anew.
remains() {
    local kinds fields='{.kind} {.metadata.name} {.metadata.labels} {.metadata.annotations} {.metadata.ownerReferences}'
    kinds=$(kubectl api-resources --verbs=list -o name | grep -Ev '^(events|events\.events\.k8s\.io|componentstatuses|endpoints|pods)$' | paste -sd,)
    kubectl get "$kinds" --all-namespaces --ignore-not-found \
        -o "jsonpath={range .items[*]}$fields{' in '}{.metadata.namespace}{'\n'}{end}" |
        grep -vE "^Namespace ($SYSTEM|weft-e2e[a-z-]*) " | sed -E 's/weft-e2e[a-z-]*//g' | grep -iE "weft.* in |in $SHOP\$" || true
}

nothing_remains() {
    is "$(remains)" ''
}

no_object_of_the_cluster_speaks_of_weft() {
    within 60 nothing_remains
    echo "$(kubectl api-resources --verbs=list -o name | wc -l) kinds in all namespaces: no name, label, annotation or owner of Weft"
}

nothing_of_the_plugin_is_left_on_the_nodes() {
    $with_cni || skip "the plugin was not installed"
    local node
    # The agent takes the plugin away when it is told to stop and has nobody to come back for.
    within 60 no_agent_runs
    for node in $(kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'); do
        look_at_node "$node"
    done
}

# Has the container runtime take two folders of the node into a pod, and lists them there: PostgreSQL's image has a shell.
look_at_node() { # NODE
    local name=look-$RANDOM image=${postgres:-$(sed -nE 's/^  image: (.*postgres.*)/\1/p' "$root/charts/orders-demo/values.yaml")}
    applied <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $name, namespace: $OUT}
spec:
  nodeName: $1
  restartPolicy: Never
  containers:
  - name: app
    image: $image
    imagePullPolicy: ${pull_policy:-IfNotPresent}
    command: [sh, -c, "ls /node/bin; cat /node/conf/*"]
    securityContext: {runAsUser: 0}
    volumeMounts:
    - {name: bin, mountPath: /node/bin, readOnly: true}
    - {name: conf, mountPath: /node/conf, readOnly: true}
  volumes:
  - {name: bin, hostPath: {path: ${cni_bin_dir:-/opt/cni/bin}}}
  - {name: conf, hostPath: {path: ${cni_conf_dir:-/etc/cni/net.d}}}
YAML
    kubectl -n "$OUT" wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$name" --timeout=60s >/dev/null
    kubectl -n "$OUT" logs "$name" >"$scratch/$1"
    if grep -i weft "$scratch/$1"; then return 1; fi
    echo "$1: $(grep -c . "$scratch/$1") lines of plugins and configuration, none of Weft"
}

pods_of_annotated_namespaces_start_without_the_mesh() {
    weft_image() { cat "$scratch/image"; }
    grace=1 app "$IN" free default demo-app users
    ready "$IN" free >/dev/null
    answers '200 {"caller":null*' "$OUT" client GET "http://$(pod_ip "$IN" free):8080/users/1"
}
