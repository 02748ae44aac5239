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

{{/* The namespace of the objects that belong to one. */}}
{{- define "eco.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* The Service's name, which must begin with a letter and may hold no dot, where a release's may do otherwise. */}}
{{- define "eco.serviceName" -}}
{{- regexReplaceAll "^([0-9])" (include "eco.fullname" . | replace "." "-") "eco-${1}" }}
{{- end }}

{{/* The name of cluster-scoped objects: two releases must not share them. A namespace's name has no dot. */}}
{{- define "eco.clusterName" -}}
{{- if eq (include "eco.fullname" .) (include "eco.namespace" .) }}
{{- include "eco.fullname" . }}
{{- else }}
{{- printf "%s.%s" (include "eco.namespace" .) (include "eco.fullname" .) }}
{{- end }}
{{- end }}

{{- define "eco.selectorLabels" -}}
{{- dict "app.kubernetes.io/name" (include "eco.name" .) "app.kubernetes.io/instance" .Release.Name | toYaml }}
{{- end }}

{{/* The labels of an object, from a list of the root and further labels. Labels that select objects, and Helm's own mark, win. */}}
{{- define "eco.labelsWith" -}}
{{- $root := first . }}
{{- $fixed := dict "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- $chart := printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $ours := dict "helm.sh/chart" $chart "app.kubernetes.io/version" $root.Chart.AppVersion }}
{{- $common := $root.Values.commonLabels | default dict }}
{{- merge $fixed (include "eco.selectorLabels" $root | fromYaml) (last . | default dict) $common $ours | toYaml }}
{{- end }}

{{/* The metadata of an object: `root`, `name`, and, where it has them, `namespace`, `labels` and `annotations`. */}}
{{- define "eco.metadata" -}}
metadata:
  name: {{ .name | quote }}
  {{- with .namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  labels:
    {{- include "eco.labelsWith" (list .root .labels) | nindent 4 }}
  {{- with merge dict (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* What selects the pods of `helm test`. Their name is another, so that nothing takes them for the operator's. */}}
{{- define "eco.testSelectorLabels" -}}
{{- $name := printf "%s-test" (include "eco.name" . | trunc 58 | trimSuffix "-") }}
{{- dict "app.kubernetes.io/name" $name "app.kubernetes.io/instance" .Release.Name | toYaml }}
{{- end }}

{{/* The metadata of such a pod, from its name. */}}
{{- define "eco.testMetadata" -}}
{{- $root := first . }}
{{- $selectors := include "eco.testSelectorLabels" $root | fromYaml }}
{{- $hook := dict "helm.sh/hook" "test" "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" }}
{{- $labels := include "eco.labelsWith" (list $root $root.Values.test.podLabels) | fromYaml }}
metadata:
  name: {{ printf "%s-%s" (include "eco.fullname" $root) (last .) | quote }}
  namespace: {{ include "eco.namespace" $root | quote }}
  labels:
    {{- merge dict $selectors $labels | toYaml | nindent 4 }}
  annotations:
    {{- merge $hook ($root.Values.test.podAnnotations | default dict) ($root.Values.commonAnnotations | default dict) | toYaml | nindent 4 }}
{{- end }}

{{/* The fields that these pods share. */}}
{{- define "eco.testPod" -}}
restartPolicy: Never
activeDeadlineSeconds: 120
enableServiceLinks: false
{{- with include "eco.imagePullSecrets" . | fromJsonArray }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "runtimeClassName" }}
{{- with get $.Values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with include "eco.securityContext" (list . "podSecurityContext") }}
securityContext:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "eco.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "eco.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create=false needs serviceAccount.name: the name of a ServiceAccount that exists" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The name of an image, from a list of the root, the image's values and its default tag. */}}
{{- define "eco.imageOf" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $registry := ($root.Values.global).imageRegistry | default $image.registry | default "" | trimSuffix "/" }}
{{- $name := ternary $image.repository (printf "%s/%s" $registry $image.repository) (empty $registry) }}
{{- if $image.digest }}
{{- printf "%s@%s" $name $image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default (index . 2) $image.tag) }}
{{- end }}
{{- end }}

{{- define "eco.image" -}}
{{- include "eco.imageOf" (list . .Values.image .Chart.AppVersion) }}
{{- end }}

{{/* The pull secrets of all pods, as JSON. */}}
{{- define "eco.imagePullSecrets" -}}
{{- $all := list }}
{{- range concat ((.Values.global).imagePullSecrets | default list) (.Values.imagePullSecrets | default list) }}
{{- $all = append $all (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- uniq $all | toJson }}
{{- end }}

{{/* Whether a value that may be `auto` is on, from a list of the value and what `auto` stands for. */}}
{{- define "eco.switch" -}}
{{- if eq (toString (first .)) "auto" }}{{ last . }}{{ else }}{{ first . }}{{ end }}
{{- end }}

{{/* A security context, from a list of the root and the value's name. OpenShift assigns user and group ids itself. */}}
{{- define "eco.securityContext" -}}
{{- $root := first . }}
{{- $context := get $root.Values (last .) | default dict }}
{{- if eq (include "eco.switch" (list $root.Values.openshift ($root.Capabilities.APIVersions.Has "security.openshift.io/v1"))) "true" }}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
{{- if $context }}
{{- toYaml $context }}
{{- end }}
{{- end }}

{{- define "eco.caDirectory" -}}
/etc/ecr-credential-operator/aws-ca
{{- end }}

{{- define "eco.webIdentityDirectory" -}}
/var/run/secrets/pullsecrets.dev/aws
{{- end }}

{{/* The operator's settings, as JSON; empty ones are left to their defaults. */}}
{{- define "eco.settings" -}}
{{- $places := list }}
{{- range include "eco.serviceAccounts" . | fromJsonArray }}
{{- $places = append $places (printf "%s/%s" .namespace .name) }}
{{- end }}
{{- $secrets := list }}
{{- range .Values.auth.secrets }}
{{- $secrets = append $secrets (printf "%s/%s" .namespace .name) }}
{{- end }}
{{- $included := list }}
{{- range (.Values.include).secrets }}
{{- $included = append $included (printf "%s/%s" .namespace .name) }}
{{- end }}
{{- $outputs := list }}
{{- range include "eco.outputs" . | fromJsonArray }}
{{- $outputs = append $outputs (printf "%s/%s=%s" .namespace .name .format) }}
{{- end }}
{{- $aws := .Values.aws | default dict }}
{{- $endpoints := $aws.endpoints | default dict }}
{{- $role := ($aws.webIdentity).roleArn }}
{{- if and $role $aws.existingSecret }}
{{- fail "aws.webIdentity.roleArn and aws.existingSecret are two identities for the operator: set one of them" }}
{{- end }}
{{- dict
  "AWS_REGION" $aws.region
  "AWS_ROLE_ARN" $role
  "AWS_WEB_IDENTITY_TOKEN_FILE" (ternary "" (printf "%s/token" (include "eco.webIdentityDirectory" .)) (empty $role))
  "AWS_ENDPOINT_URL_ECR" $endpoints.ecr
  "AWS_ENDPOINT_URL_ECR_PUBLIC" $endpoints.ecrPublic
  "AWS_ENDPOINT_URL_STS" $endpoints.sts
  "AWS_CA_BUNDLE" (ternary "" (printf "%s/ca.crt" (include "eco.caDirectory" .)) (empty ($aws.caBundle).name))
  "ECO_ALL_SECRET_NAMES" (ternary "" "true" (empty .Values.allSecretNames))
  "ECO_SECRET_NAMES" (ternary (join "," .Values.secretNames) "" (empty .Values.allSecretNames))
  "ECO_NAMESPACES" (join "," .Values.namespaces)
  "ECO_OUTPUT_SECRETS" (join "," $outputs)
  "ECO_INCLUDE_SECRETS" (join "," $included)
  "ECO_SERVICE_ACCOUNTS" (join "," $places)
  "ECO_CREDENTIALS_SECRETS" (join "," $secrets)
  "ECO_REQUIRE_WORKLOAD_IDENTITY" (ternary "true" "" (and .Values.auth.requireWorkloadIdentity (empty $aws.existingSecret)))
  "ECO_ATTACH_PODS" (ternary "true" "" (eq (include "eco.attachPods" .) "true"))
  "ECO_ATTACH_SERVICE_ACCOUNTS" (join "," .Values.attach.serviceAccounts)
  "ECO_NAMESPACE_EVENTS" (ternary "true" "" (eq (toString .Values.rbac.namespaceEvents) "true"))
  "ECO_CREDENTIAL_SELECTOR" .Values.credentialSelector
  "ECO_HTTP_ADDRESS" (ternary "" (printf "[::]:%v" .Values.containerPort) (eq (toString .Values.containerPort) "8080"))
  "ECO_LEASE_NAME" (include "eco.fullname" .)
  "ECO_LOG" .Values.logging.level
  "ECO_LOG_FORMAT" .Values.logging.format
  | toJson }}
{{- end }}

{{/* The environment of the operator and of its commands: variables, not flags, so that all of them have the same settings. */}}
{{- define "eco.env" -}}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  {{- $further := dict }}
  {{- range .Values.extraEnv }}{{ $_ := set $further .name true }}{{ end }}
  {{- range $name, $value := include "eco.settings" . | fromJson }}
  {{- if and $value (not (hasKey $further $name)) }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
  {{- end }}
  {{- with (.Values.aws).existingSecret }}
  {{- $secret := . }}
  {{- range $name := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN" }}
  {{- if not (hasKey $further $name) }}
  - name: {{ $name }}
    valueFrom:
      secretKeyRef:
        name: {{ $secret | quote }}
        key: {{ $name }}
        {{- if eq $name "AWS_SESSION_TOKEN" }}
        optional: true
        {{- end }}
  {{- end }}
  {{- end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The volumes that these settings refer to, and where they are mounted. */}}
{{- define "eco.volumes" -}}
{{- with (.Values.aws).webIdentity }}
{{- if .roleArn }}
- name: aws-web-identity
  projected:
    sources:
      - serviceAccountToken:
          audience: {{ .audience | quote }}
          expirationSeconds: {{ .expirationSeconds | int64 }}
          path: token
{{- end }}
{{- end }}
{{- with (.Values.aws).caBundle }}
{{- if .name }}
- name: aws-ca
  {{- if eq .kind "Secret" }}
  secret:
    secretName: {{ .name | quote }}
  {{- else }}
  configMap:
    name: {{ .name | quote }}
  {{- end }}
    items: [{key: {{ .key | quote }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "eco.volumeMounts" -}}
{{- if ((.Values.aws).webIdentity).roleArn }}
- name: aws-web-identity
  mountPath: {{ include "eco.webIdentityDirectory" . }}
  readOnly: true
{{- end }}
{{- if ((.Values.aws).caBundle).name }}
- name: aws-ca
  mountPath: {{ include "eco.caDirectory" . }}
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The rights on Secrets of some names, or of all names for an empty list. */}}
{{- define "eco.secretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  {{- with . }}
  # RBAC authorizes a list or watch that selects one name, and a server-side apply, with that name.
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [get, list, watch, create, patch, delete]
{{- end }}

{{/* The rights on the ServiceAccounts that pull secrets are attached to. */}}
{{- define "eco.attachRules" -}}
{{- with .Values.attach.serviceAccounts }}
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: {{ toJson . }}
  verbs: [list, watch, patch]
{{- end }}
{{- if .Values.rbac.namespaceEvents }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
{{- end }}

{{/* The ServiceAccounts that EcrCredentials may use, as JSON; the namespace `*` stands for every one. */}}
{{- define "eco.serviceAccounts" -}}
{{- $all := list }}
{{- range .Values.auth.serviceAccounts }}
{{- $name := .name }}
{{- range ternary (default (list "*") $.Values.namespaces) (list .namespace) (empty .namespace) }}
{{- $all = append $all (dict "namespace" . "name" $name) }}
{{- end }}
{{- end }}
{{- toJson $all }}
{{- end }}

{{/* The names of the ServiceAccounts and the Secrets that EcrCredentials may use, by namespace, as JSON: those with access keys, and
those whose docker configs they may include. */}}
{{- define "eco.lent" -}}
{{- $lent := dict }}
{{- range include "eco.serviceAccounts" . | fromJsonArray }}
{{- $here := get $lent .namespace | default (dict "serviceAccounts" list "secrets" list) }}
{{- $_ := set $here "serviceAccounts" (append $here.serviceAccounts .name | uniq) }}
{{- $_ := set $lent .namespace $here }}
{{- end }}
{{- range concat (.Values.auth.secrets | default list) ((.Values.include).secrets | default list) }}
{{- $here := get $lent .namespace | default (dict "serviceAccounts" list "secrets" list) }}
{{- $_ := set $here "secrets" (append $here.secrets .name | uniq) }}
{{- $_ := set $lent .namespace $here }}
{{- end }}
{{- toJson $lent }}
{{- end }}

{{/* The rights to use them, of one namespace or of all. */}}
{{- define "eco.authRules" -}}
{{- with .serviceAccounts }}
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: {{ toJson . }}
  verbs: [list, watch]
- apiGroups: [""]
  resources: [serviceaccounts/token]
  resourceNames: {{ toJson . }}
  verbs: [create]
{{- end }}
{{- with .secrets }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: {{ toJson . }}
  verbs: [get, list, watch]
{{- end }}
{{- end }}

{{/* The binding of a role of the same name, in a namespace or, without one, in the cluster. */}}
{{- define "eco.binding" }}
{{- $kind := ternary "ClusterRole" "Role" (empty .namespace) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
{{ include "eco.metadata" . }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ .name | quote }}
subjects:
  - kind: ServiceAccount
    name: {{ include "eco.serviceAccountName" .root | quote }}
    namespace: {{ include "eco.namespace" .root | quote }}
{{- end }}

{{/* Whether the cluster knows EcrCredentials. Without a cluster, as in `helm template`, no kind is known, and it counts as one. */}}
{{- define "eco.knowsCredentials" -}}
{{- $kinds := .Capabilities.APIVersions }}
{{- or ($kinds.Has "pullsecrets.dev/v1alpha1/EcrCredential") (not ($kinds.Has "v1/Namespace")) }}
{{- end }}

{{/* Whether the policy that attaches Secrets to pods is installed: `auto` where the cluster serves its kind. Without a cluster, as in
`helm template`, no kind is known, and the version of Kubernetes counts. */}}
{{- define "eco.attachPods" -}}
{{- $enabled := toString .Values.attach.pods.enabled }}
{{- $kinds := .Capabilities.APIVersions }}
{{- $served := or ($kinds.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy") (and (not ($kinds.Has "v1/Namespace")) (semverCompare ">=1.36-0" .Capabilities.KubeVersion.Version)) }}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") $served) }}true{{ else }}false{{ end }}
{{- end }}
