{{- define "iz.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "iz.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "iz.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "iz.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of one part: (list . "api") */}}
{{- define "iz.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ include "iz.name" $top }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "iz.labels" -}}
{{- $top := index . 0 -}}
{{ include "iz.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version }}
{{- end }}

{{/* (list . "optimizer") */}}
{{- define "iz.image" -}}
{{- $top := index . 0 -}}
{{- with $top.Values.image.registry }}{{ . }}/{{ end }}instructzero-{{ index . 1 }}:{{ default $top.Chart.AppVersion $top.Values.image.tag }}
{{- end }}

{{- define "iz.databaseSecret" -}}
{{- if .Values.development.enabled }}{{ include "iz.fullname" . }}-development{{ else }}{{ .Values.database.existingSecret }}{{ end }}
{{- end }}

{{- define "iz.redisSecret" -}}
{{- if .Values.development.enabled }}{{ include "iz.fullname" . }}-development{{ else }}{{ .Values.redis.existingSecret }}{{ end }}
{{- end }}

{{- define "iz.authSecret" -}}
{{- if .Values.development.enabled }}{{ include "iz.fullname" . }}-development{{ else }}{{ .Values.auth.existingSecret }}{{ end }}
{{- end }}

{{- define "iz.generatorUrl" -}}
{{- if eq .Values.generator.mode "external" }}{{ .Values.generator.url }}
{{- else if eq .Values.generator.mode "rayService" }}http://{{ include "iz.fullname" . }}-generator-serve-svc:8001
{{- else }}http://{{ include "iz.fullname" . }}-generator:8001
{{- end }}
{{- end }}

{{/* (list "NAME" "secret" "key") */}}
{{- define "iz.fromSecret" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 2 }}}
{{- end }}

{{- define "iz.databaseEnv" -}}
{{ include "iz.fromSecret" (list "IZ_OPTIMIZER_DATABASE_URL" (include "iz.databaseSecret" .) (ternary "database-url" .Values.database.key .Values.development.enabled)) }}
{{- end }}

{{- define "iz.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "iz.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What every pod says: (list . "api" .Values.api) */}}
{{- define "iz.pod" -}}
{{- $top := index . 0 -}}
{{- $part := index . 1 -}}
{{- $values := index . 2 -}}
automountServiceAccountToken: false
# Kubernetes would set IZ_SCORER_PORT=tcp://... for a release named `iz`: our own variable.
enableServiceLinks: false
securityContext:
  {{- include "iz.podSecurity" $top | nindent 2 }}
{{- with $top.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "iz.selector" (list $top $part) | nindent 8 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "iz.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 5
  failureThreshold: {{ . }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
