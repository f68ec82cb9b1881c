{{- define "meshwright.image" -}}
{{ .Values.image | default (printf "meshwright:%s" .Chart.AppVersion) }}
{{- end }}
