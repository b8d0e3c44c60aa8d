{{/* Labels of every object. Argument: root context and the component. */}}
{{- define "weft.labels" -}}
{{- $component := index . 1 -}}
{{- with index . 0 -}}
{{- $labels := dict
  "app.kubernetes.io/name" (printf "weft-%s" $component)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/part-of" "weft"
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_")) -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.commonLabels) $labels) -}}
{{- end -}}
{{- end -}}

{{/*
metadata of an object. A dict: root, component, name; optional: cluster (true: not namespaced), labels, annotations.
*/}}
{{- define "weft.metadata" -}}
{{- $annotations := mergeOverwrite (deepCopy .root.Values.commonAnnotations) (deepCopy (.annotations | default dict)) -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- toYaml (mergeOverwrite (deepCopy (.labels | default dict)) (include "weft.labels" (list .root .component) | fromYaml)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the selectors of the control plane's pods say: never changes. */}}
{{- define "weft.controlPlane.selector" -}}
app.kubernetes.io/name: weft-control-plane
weft.dev/component: control-plane
{{- end -}}

{{/* What the selectors of the CNI plugin's pods say: never changes. */}}
{{- define "weft.cni.selector" -}}
app.kubernetes.io/name: weft-cni
weft.dev/component: cni
{{- end -}}

{{/* Reference of an image. Arguments: root context, the image's values. */}}
{{- define "weft.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.name -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* Namespaces that no webhook of ours ever speaks for: what the cluster itself runs in. */}}
{{- define "weft.systemNamespaces" -}}
[kube-system, kube-public, kube-node-lease]
{{- end -}}

{{/* Labels of pods. Arguments: root context, component, the labels that values add. */}}
{{- define "weft.podLabels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $own := dict "weft.dev/component" $component -}}
{{- toYaml (mergeOverwrite (deepCopy (index . 2)) (include "weft.labels" (list $root $component) | fromYaml) $own) -}}
{{- end -}}

{{/* imagePullSecrets of a pod. */}}
{{- define "weft.pullSecrets" -}}
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end -}}
