{{- /*
One role: its ServiceAccount, Deployment and PodDisruptionBudget. A dict with
  root, role (the name on the command line), values (the role's part of the values),
  args, env (lists of what is special), volumes, mounts (lists), ports (a list), security (of the container)
*/ -}}
{{- define "vlinders.role" -}}
{{- $root := .root -}}
{{- $name := printf "%s-%s" (include "vlinders.name" $root) .role -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels:
    {{- include "vlinders.labels" $root | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "vlinders.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
spec:
  {{- if not .isScaled }}
  replicas: {{ .values.scaling.min }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "vlinders.selector" (dict "root" $root "role" .role) | nindent 6 }}
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  template:
    metadata:
      labels:
        {{- include "vlinders.selector" (dict "root" $root "role" .role) | nindent 8 }}
      annotations:
        checksum/config: {{ include "vlinders.config" $root | sha256sum }}
        {{- with $root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .hostUsers }}
      hostUsers: {{ eq . "yes" }}
      {{- end }}
      terminationGracePeriodSeconds: {{ $root.Values.terminationGraceSeconds }}
      securityContext:
        {{- include "vlinders.podSecurity" $root | nindent 8 }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      topologySpreadConstraints:
        {{- include "vlinders.spread" (dict "root" $root "role" .role) | nindent 8 }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ include "vlinders.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - {{ .role }}
            - --json
            - --config=/etc/vlinders/vlinders.toml
            {{- range concat (default list .args) (default list .values.args) }}
            - {{ . | quote }}
            {{- end }}
          env:
            - {name: VLINDERS_NATS__URL, value: {{ include "vlinders.natsUrl" $root | quote }}}
            - {name: VLINDERS_NATS__NKEY_FILE, value: /run/secrets/nats/key}
            - {name: VLINDERS_NATS__INBOX_PREFIX, value: _INBOX_{{ .role }}}
            - {name: VLINDERS_NATS__PROVISION, value: {{ eq .role "orchestrator" | quote }}}
            - {name: VLINDERS_NATS__REPLICAS, value: {{ $root.Values.nats.replicas | quote }}}
            {{- if $root.Values.nats.tlsSecret }}
            - {name: VLINDERS_NATS__TLS, value: "true"}
            - {name: VLINDERS_NATS__CA_FILE, value: /run/secrets/tls/ca.crt}
            - {name: VLINDERS_NATS__CERTIFICATE_FILE, value: /run/secrets/tls/tls.crt}
            - {name: VLINDERS_NATS__KEY_FILE, value: /run/secrets/tls/tls.key}
            {{- end }}
            - {name: VLINDERS_TELEMETRY__LOG, value: {{ $root.Values.log | quote }}}
            {{- with $root.Values.otlpEndpoint }}
            - {name: VLINDERS_TELEMETRY__OTLP_ENDPOINT, value: {{ . | quote }}}
            {{- end }}
            {{- with .env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: probe, containerPort: 9464}
            {{- with .ports }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          # A start reads models and waits for NATS and for the streams; then /health/live answers as long as the process
          # does, and /health when it also takes work.
          startupProbe:
            httpGet: {path: /health/live, port: probe}
            periodSeconds: 2
            failureThreshold: 90
          livenessProbe:
            httpGet: {path: /health/live, port: probe}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /health, port: probe}
            periodSeconds: 5
            timeoutSeconds: 3
          resources:
            {{- if and .values.gpu .values.gpu.enabled }}
            {{- $gpu := dict .values.gpu.resource (.values.gpu.count | toString) }}
            {{- toYaml (mergeOverwrite (deepCopy .values.resources) (dict "limits" (merge (deepCopy (default dict .values.resources.limits)) $gpu))) | nindent 12 }}
            {{- else }}
            {{- toYaml .values.resources | nindent 12 }}
            {{- end }}
          securityContext:
            {{- include "vlinders.containerSecurity" $root | nindent 12 }}
            {{- with .security }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          volumeMounts:
            - {name: config, mountPath: /etc/vlinders, readOnly: true}
            - {name: nats-key, mountPath: /run/secrets/nats, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            {{- if $root.Values.nats.tlsSecret }}
            - {name: tls, mountPath: /run/secrets/tls, readOnly: true}
            {{- end }}
            {{- with .mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: config
          configMap: {name: {{ include "vlinders.name" $root }}}
        - name: nats-key
          secret:
            secretName: {{ $root.Values.keys.secret }}
            defaultMode: 0440
            # Its own key and nobody else's.
            items: [{key: {{ .role }}.nk, path: key}]
        - name: tmp
          emptyDir: {medium: Memory, sizeLimit: 64Mi}
        {{- if $root.Values.nats.tlsSecret }}
        - name: tls
          secret: {secretName: {{ $root.Values.nats.tlsSecret }}, defaultMode: 0440}
        {{- end }}
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- if $root.Values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "vlinders.labels" $root | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "vlinders.selector" (dict "root" $root "role" .role) | nindent 6 }}
{{- end }}
{{- end -}}
