{{/*
The Secrets that the operator may write in other forms than a pull secret, from the value `outputs`.
*/}}

{{/* The formats: the type of a Secret, all of its keys, and the label by which its consumer finds it, as JSON. */}}
{{- define "eco.formats" -}}
{{- $argocd := list "argocd.argoproj.io/secret-type" "repo-creds" }}
{{- dict
  "DockerConfigJson" (dict "type" "kubernetes.io/dockerconfigjson" "keys" (list ".dockerconfigjson") "label" list)
  "DockerConfigFile" (dict "type" "Opaque" "keys" (list "config.json") "label" list)
  "BasicAuth" (dict "type" "kubernetes.io/basic-auth" "keys" (list "username" "password") "label" list)
  "TektonBasicAuth" (dict "type" "kubernetes.io/basic-auth" "keys" (list "username" "password") "label" list)
  "ArgoCDHelm" (dict "type" "Opaque" "keys" (list "url" "type" "enableOCI" "username" "password") "label" $argocd)
  "ArgoCDOCI" (dict "type" "Opaque" "keys" (list "url" "type" "username" "password") "label" $argocd)
  "Jenkins" (dict "type" "Opaque" "keys" (list "username" "password") "label" (list "jenkins.io/credentials-type" "usernamePassword"))
  "KargoImage" (dict "type" "Opaque" "keys" (list "repoURL" "repoURLIsRegex" "username" "password") "label" (list "kargo.akuity.io/cred-type" "image"))
  | toJson }}
{{- end }}

{{/*
The output Secrets as a JSON list of namespace, name and format; the namespace `*` stands for every one. Kubernetes cannot change the
type of a Secret, so a name has one format in a namespace.
*/}}
{{- define "eco.outputs" -}}
{{- $all := list }}
{{- range $output := .Values.outputs }}
{{- $name := $output.name }}
{{- if and (not $.Values.allSecretNames) (has $name $.Values.secretNames) }}
{{- fail (printf "outputs: %s is also in secretNames, which are the names of pull secrets: use another name for the output" $name) }}
{{- end }}
{{- range $namespace := default (default (list "*") $.Values.namespaces) $output.namespaces }}
{{- if and $.Values.namespaces (not (has $namespace $.Values.namespaces)) }}
{{- fail (printf "outputs: %s is for the namespace %s, and the operator may write only to those in namespaces: add it there" $name $namespace) }}
{{- end }}
{{- range $other := $all }}
{{- if and (eq $other.name $name) (or (eq $other.namespace $namespace) (eq $other.namespace "*") (eq $namespace "*")) }}
{{- fail (printf "outputs: %s is there twice for the same namespace, as %s and as %s: use another name for one of them" $name $other.format $output.format) }}
{{- end }}
{{- end }}
{{- $all = append $all (dict "namespace" $namespace "name" $name "format" $output.format) }}
{{- end }}
{{- end }}
{{- toJson $all }}
{{- end }}

{{/*
The names of the Secrets that the operator may write, by namespace, as JSON; the namespace `*` stands for every one. An empty list
stands for all names.
*/}}
{{- define "eco.written" -}}
{{- $written := dict }}
{{- range default (list "*") .Values.namespaces }}
{{- $_ := set $written . (ternary list $.Values.secretNames (not (empty $.Values.allSecretNames))) }}
{{- end }}
{{- range include "eco.outputs" . | fromJsonArray }}
{{- if not $.Values.allSecretNames }}
{{- $_ := set $written .namespace (append (get $written .namespace | default list) .name) }}
{{- end }}
{{- end }}
{{- toJson $written }}
{{- end }}

{{/* The variables of the ValidatingAdmissionPolicy by which it tells which format a Secret has, and what that consists of. */}}
{{- define "eco.policy.formats" -}}
{{- $formats := include "eco.formats" . | fromJson }}
# What the chart's `outputs` say. Every other Secret is a pull secret.
{{- $outputs := dict }}
{{- range include "eco.outputs" . | fromJsonArray }}{{ $_ := set $outputs (printf "%s/%s" .namespace .name) .format }}{{ end }}
- name: outputs
  expression: {{ toJson $outputs | squote }}
- name: name
  expression: "(object == null ? oldObject : object).metadata.?name.orValue('')"
- name: format
  expression: >-
    variables.outputs[?request.namespace + '/' + variables.name].orValue(
      variables.outputs[?'*/' + variables.name].orValue('DockerConfigJson'))
# Of each format: the type, all keys, and the label by which its consumer finds the Secret.
{{- range $part := list "type" "keys" "label" }}
- name: {{ $part }}
  expression: >-
    {
    {{- range $format, $parts := $formats }}
      '{{ $format }}': {{ get $parts $part | toJson | replace "\"" "'" }},
    {{- end }}
    }[variables.format]
{{- end }}
{{- end }}
