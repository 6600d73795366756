{{- define "weir.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Of everything; what selects pods has the component only. */}}
{{- define "weir.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* The nodes that agents run on, as a label selector. */}}
{{- define "weir.nodeSelector" -}}
{{- $pairs := list -}}
{{- range $key, $value := .Values.agent.nodeSelector -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end }}

{{- define "weir.caConfigMap" -}}
{{ .Values.tls.caConfigMap | default "weir-ca" }}
{{- end }}

{{/* Egress of pods that ask the API server, whose addresses and ports policies see behind its Service. */}}
{{- define "weir.toApiServer" -}}
- ports:
  {{- range .Values.networkPolicy.apiServer.ports }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
  {{- with .Values.networkPolicy.apiServer.cidrs }}
  to:
  {{- range . }}
  - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
  {{- end }}
{{- end }}
