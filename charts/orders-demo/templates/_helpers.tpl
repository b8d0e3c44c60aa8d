{{/* Namespace of everything. */}}
{{- define "demo.namespace" -}}
{{- ternary .Values.namespace.name .Release.Namespace .Values.namespace.create -}}
{{- end -}}

{{/* metadata of an object. Arguments: root context, name. */}}
{{- define "demo.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ include "demo.namespace" $root }}
labels:
  {{- include "demo.labels" . | nindent 2 }}
{{- end -}}

{{/* Labels of every object. Arguments: root context, name. */}}
{{- define "demo.labels" -}}
{{- $root := index . 0 -}}
app: {{ index . 1 }}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion }}
app.kubernetes.io/part-of: orders-demo
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* What Pod Security `restricted` asks of a pod. Argument: the user. */}}
{{- define "demo.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* And of each of its containers. */}}
{{- define "demo.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "demo.image" -}}
{{- with .Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{- define "demo.pullSecrets" -}}
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end -}}
