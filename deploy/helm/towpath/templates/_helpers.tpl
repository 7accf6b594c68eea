{{/* Labels that choose the pods of a workload. */}}
{{- define "towpath.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .release }}
{{- end }}

{{/* Labels of everything. */}}
{{- define "towpath.labels" -}}
{{ include "towpath.selector" . }}
app.kubernetes.io/part-of: towpath
app.kubernetes.io/version: {{ .version | quote }}
app.kubernetes.io/managed-by: {{ .service }}
{{- end }}
