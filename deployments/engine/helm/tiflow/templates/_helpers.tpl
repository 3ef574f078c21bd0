{{- define "tiflow.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* gRPC believes a certificate's * only above a name of several labels, so addresses end in NAMESPACE.svc */}}
{{- define "tiflow.masters" -}}{{ .Release.Name }}-server-master{{- end }}
{{- define "tiflow.executors" -}}{{ .Release.Name }}-executor{{- end }}
{{- define "tiflow.mysql" -}}{{ .Release.Name }}-metastore-framework-mysql{{- end }}

{{- define "tiflow.chaos" -}}{{ .Release.Name }}-chaos-test-case{{ if gt (int .Release.Revision) 1 }}-{{ .Release.Revision }}{{ end }}{{- end }}

{{/* host:port of every master, separated by commas; stable names, since masters are known to each other by them */}}
{{- define "tiflow.peers" -}}
{{- $masters := include "tiflow.masters" . -}}
{{- $peers := list -}}
{{- range $i := until (int .Values.serverMaster.replicas) -}}
{{- $peers = append $peers (printf "%s-%d.%s.%s.svc:10240" $masters $i $masters $.Release.Namespace) -}}
{{- end -}}
{{- join "," $peers -}}
{{- end }}

{{- define "tiflow.labels" -}}
app.kubernetes.io/name: tiflow
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* (root, component) */}}
{{- define "tiflow.selector" -}}
app.kubernetes.io/name: tiflow
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tiflow.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* (root, component, kind, topologyKey) */}}
{{- define "tiflow.affinity" -}}
{{- $term := dict "topologyKey" (index . 3) "labelSelector" (dict "matchLabels" (include "tiflow.selector" . | fromYaml)) -}}
{{- if eq (index . 2) "hard" }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - {{ $term | toYaml | nindent 8 | trim }}
{{- else if eq (index . 2) "soft" }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm: {{- $term | toYaml | nindent 10 }}
{{- end }}
{{- end }}

{{- define "tiflow.masterToml" -}}
http-addr = "0.0.0.0:10250"
data-dir = "/data"
{{ with .Values.serverMaster.config }}{{ . }}
{{ end }}
{{- include "tiflow.security" . }}
{{- end }}

{{- define "tiflow.executorToml" -}}
data-dir = "/data"
slots = {{ int .Values.executor.slots }}
drain-timeout = "{{ sub (int .Values.executor.terminationGracePeriodSeconds) 10 }}s"
{{ with .Values.executor.config }}{{ . }}
{{ end }}
{{- include "tiflow.security" . }}
{{- end }}

{{- define "tiflow.security" -}}
{{- if .Values.tls.enabled }}
[security]
ca-path = "/certs/ca.crt"
cert-path = "/certs/tls.crt"
key-path = "/certs/tls.key"
{{- else }}
[security]
# The network of the cluster is trusted: see tls.enabled and networkPolicy.enabled of the chart.
insecure = true
{{- end }}
{{- end }}

{{- define "tiflow.masterSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ .Release.Name }}-server-master-tls{{ else }}{{ required "tls.serverMasterSecret: name the Secret with the masters' ca.crt, tls.crt and tls.key, or set tls.certManager.enabled" .Values.tls.serverMasterSecret }}{{ end }}
{{- end }}
{{- define "tiflow.executorSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ .Release.Name }}-executor-tls{{ else }}{{ required "tls.executorSecret: name the Secret with the executors' ca.crt, tls.crt and tls.key, or set tls.certManager.enabled" .Values.tls.executorSecret }}{{ end }}
{{- end }}
{{- define "tiflow.clientSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ .Release.Name }}-client-tls{{ else }}{{ .Values.tls.clientSecret | default (include "tiflow.executorSecret" .) }}{{ end }}
{{- end }}
