{{- define "sriov.name" -}}
{{ .Values.operator.fullnameOverride | default .Values.operator.nameOverride | default "sriov-network-operator" | trunc 63 | trimSuffix "-" }}
{{- end }}
