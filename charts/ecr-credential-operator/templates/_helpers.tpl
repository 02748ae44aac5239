{{/* The chart's name. */}}
{{- define "eco.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of the objects: the release's name, with the chart's unless it holds that already. */}}
{{- define "eco.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- $name := include "eco.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of objects that belong to no namespace: two releases of one name in two namespaces must not share them. */}}
{{- define "eco.clusterName" -}}
{{- if eq (include "eco.fullname" .) .Release.Namespace }}
{{- include "eco.fullname" . }}
{{- else }}
{{- printf "%s-%s" .Release.Namespace (include "eco.fullname" .) }}
{{- end }}
{{- end }}

{{- define "eco.selectorLabels" -}}
app.kubernetes.io/name: {{ include "eco.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "eco.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "eco.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "eco.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "eco.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "eco.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* The rights on Secrets: the names of this release and no others, unless all are asked for. */}}
{{- define "eco.secretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  {{- if not .Values.allSecretNames }}
  # A list or watch by name and a server-side apply are authorised with the name, so this is enough for all of them.
  resourceNames: {{ toJson .Values.secretNames }}
  {{- end }}
  verbs: [get, list, watch, create, patch, delete]
{{- end }}

{{- define "eco.subjects" -}}
- kind: ServiceAccount
  name: {{ include "eco.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{/* Whether the cluster knows EcrCredentials. Without a cluster, as in `helm template`, no kind is known, and it counts as one. */}}
{{- define "eco.knowsCredentials" -}}
{{- $kinds := .Capabilities.APIVersions }}
{{- or ($kinds.Has "pullsecrets.dev/v1alpha1/EcrCredential") (not ($kinds.Has "v1/Namespace")) }}
{{- end }}
