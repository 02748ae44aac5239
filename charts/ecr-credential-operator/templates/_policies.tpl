{{/*
Parts of the ValidatingAdmissionPolicies that hold the operator's own ServiceAccount to what the operator writes.

A policy sees an object after the cluster's mutating admission. What admission adds must not be held against the operator: its
writes would be refused, and the tokens would expire. Admission runs after the API server has recorded in `managedFields` what
the request writes, so what nobody owns there was added by admission. Two kinds of objects do not tell what was written, and then
every addition is refused: those without managed fields, and those whose managed fields are as they were before. A request can bring
about the latter: the API server of Kubernetes 1.37 restores the stored ones if it cannot read those of the request. So can two
writes of the same fields by the operator within one second; what admission adds only to the second is refused until it is tried again.
*/}}

{{/* The names of the operator's ServiceAccount, as a match condition. */}}
{{- define "eco.policy.byTheOperator" -}}
- name: by-the-operator
  expression: request.userInfo.username == {{ printf "system:serviceaccount:%s:%s" (include "eco.namespace" .) (include "eco.serviceAccountName" .) | squote }}
{{- end }}

{{/* The constraints for resources, by API group. What the API server would default is spelled out, so that GitOps shows no difference. */}}
{{- define "eco.policy.matchConstraints" -}}
matchPolicy: Equivalent
namespaceSelector: {}
objectSelector: {}
resourceRules:
  {{- range $group, $resources := .resources }}
  - apiGroups: [{{ $group | quote }}]
    apiVersions: [v1]
    resources: [{{ $resources }}]
    operations: [{{ $.operations | join ", " }}]
    scope: "*"
  {{- end }}
{{- end }}

{{/* The variables by which the validations below tell what the request writes. */}}
{{- define "eco.policy.variables" -}}
# What each field manager owns.
- name: managed
  expression: >-
    object == null ? [] : dyn(object).metadata.?managedFields.orValue([]).map(m, m.?fieldsV1.orValue({}))
# Whether the managed fields tell what this request writes. If not, every addition counts as the operator's.
- name: tracked
  expression: >-
    variables.managed.size() > 0
    && (oldObject == null || dyn(object).metadata.?managedFields != dyn(oldObject).metadata.?managedFields)
# The bytes of all labels and annotations, now and before.
{{- range $variable, $of := dict "size" "object" "oldSize" "oldObject" }}
- name: {{ $variable }}
  expression: >-
    {{ $of }} == null ? 0
    : {{ $of }}.metadata.?labels.orValue({}).map(k, size(k) + size({{ $of }}.metadata.labels[k])).sum()
      + {{ $of }}.metadata.?annotations.orValue({}).map(k, size(k) + size({{ $of }}.metadata.annotations[k])).sum()
{{- end }}
{{- end }}

{{/* No new finalizer, and no new owner reference but the operator's own: they hold up deletions that are none of its business. */}}
{{- define "eco.policy.metadata" -}}
- expression: >-
    object == null
    || object.metadata.?finalizers.orValue([]).all(name,
         (oldObject != null && name in oldObject.metadata.?finalizers.orValue([]))
         || (variables.tracked && !variables.managed.exists(f, f[?'f:metadata'][?'f:finalizers'][?'v:"' + name + '"'].hasValue())))
  message: the operator may not add finalizers
  reason: Forbidden
- expression: >-
    object == null
    || object.metadata.?ownerReferences.orValue([]).all(o,
         {{- if .own }}
         (o.apiVersion == 'pullsecrets.dev/v1alpha1' && o.kind == 'EcrCredential' && o.?controller.orValue(false)
          && !o.?blockOwnerDeletion.orValue(false))
         || {{ end }}(oldObject != null && oldObject.metadata.?ownerReferences.orValue([]).exists(p,
              p.uid == o.uid && p.kind == o.kind && p.apiVersion == o.apiVersion && p.name == o.name
              && (p.?controller.orValue(false) || !o.?controller.orValue(false))
              && (p.?blockOwnerDeletion.orValue(false) || !o.?blockOwnerDeletion.orValue(false))))
         || (variables.tracked && o.uid.matches('^[-0-9A-Za-z]+$')
             && !variables.managed.exists(f, f[?'f:metadata'][?'f:ownerReferences'][?'k:{"uid":"' + o.uid + '"}'].hasValue())))
  message: the operator may add no owner reference{{ if .own }} but its own{{ end }}
  reason: Forbidden
# An EcrCredential allows 150 KiB. What others have put there before may be more, and stays.
- expression: >-
    object == null
    || variables.size <= 163840
    || (oldObject != null && variables.size <= variables.oldSize + 1024)
  message: the operator may not add so many or so large labels and annotations
  reason: Forbidden
{{- end }}

{{/* The binding of a policy. */}}
{{- define "eco.policy.binding" }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
{{ include "eco.metadata" . }}
spec:
  policyName: {{ .name | quote }}
  validationActions: [Deny]
{{- end }}
