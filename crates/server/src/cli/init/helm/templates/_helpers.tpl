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

{{/* What names begin with: the release and a dash, or `prefix`. Two releases of one namespace share no name. */}}
{{- define "towpath.prefix" -}}
{{- if kindIs "string" .Values.prefix }}{{ .Values.prefix }}{{ else }}{{ .Release.Name }}-{{ end }}
{{- end }}

{{/* The name of a workload's objects. Its pods carry a label that is eleven characters longer, of 63 at most. */}}
{{- define "towpath.name" -}}
{{- $full := printf "%s%s" (include "towpath.prefix" .root) .name }}
{{- if gt (len $full) 52 }}{{ fail (printf "the name `%s` is longer than 52 characters; choose a shorter release, workload or `prefix`" $full) }}{{ end }}
{{- $full }}
{{- end }}

{{/* A value as the program reads it: numbers in digits, whatever their size. */}}
{{- define "towpath.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* The variables of a workload as JSON: those of all, and over them its own. Zero, false and "" are values. */}}
{{- define "towpath.env" -}}
{{- $env := dict "TOWPATH_DATA__DIR" "/data" "TOWPATH_SERVER__ADMIN" ":7070" "TOWPATH_LOG__FORMAT" "json" }}
{{- $prefix := include "towpath.prefix" .root }}
{{- range $from := list .root.Values.env .one.env }}
{{- range $key, $value := $from }}
{{- $_ := set $env $key (include "towpath.text" $value | replace "$(RELEASE)" $prefix) }}
{{- end }}
{{- end }}
{{- toJson $env }}
{{- end }}

{{/* Pods of a workload, one unless said. */}}
{{- define "towpath.replicas" -}}
{{- if kindIs "invalid" .replicas }}1{{ else }}{{ include "towpath.text" .replicas }}{{ end }}
{{- end }}
