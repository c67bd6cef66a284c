{{/* Every contradiction that the schema cannot see, said at once, each with what to do. */}}
{{- define "iz.validate" -}}
{{- $problems := list -}}
{{- $v := .Values -}}
{{- if not $v.development.enabled -}}
  {{- if not $v.database.existingSecret -}}
    {{- $problems = append $problems "database.existingSecret is empty: make a Secret with the database's URL (kubectl create secret generic iz-database --from-literal=url=postgresql://USER:PASSWORD@HOST:5432/NAME) and name it here, or set development.enabled=true to try it out" -}}
  {{- end -}}
  {{- if not $v.redis.existingSecret -}}
    {{- $problems = append $problems "redis.existingSecret is empty: make a Secret with Redis's URL (kubectl create secret generic iz-redis --from-literal=url=redis://HOST:6379/0) and name it here" -}}
  {{- end -}}
  {{- if not $v.auth.existingSecret -}}
    {{- $problems = append $problems "auth.existingSecret is empty: make a Secret with api-key-hashes (from `instructzero key`), scorer-token and generator-token and name it here" -}}
  {{- end -}}
  {{- if not (get $v.targets.config "targets") -}}
    {{- $problems = append $problems "targets.config.targets is empty: register at least one target, as docs/targets.md says" -}}
  {{- end -}}
{{- end -}}
{{- if and (eq $v.generator.mode "external") (not $v.generator.url) -}}
  {{- $problems = append $problems "generator.mode is external and generator.url is empty: give the address of the generator, without /v1" -}}
{{- end -}}
{{- if and (ne $v.generator.mode "external") $v.generator.url -}}
  {{- $problems = append $problems "generator.url is set and generator.mode is not external: set generator.mode=external, or leave generator.url empty" -}}
{{- end -}}
{{- range $name := list "api" "runner" "scorer" -}}
  {{- $scaling := (get $v $name).autoscaling -}}
  {{- if gt (int $scaling.min) (int $scaling.max) -}}
    {{- $problems = append $problems (printf "%s.autoscaling.min (%d) is greater than %s.autoscaling.max (%d)" $name (int $scaling.min) $name (int $scaling.max)) -}}
  {{- end -}}
{{- end -}}
{{- if lt (int $v.scorer.terminationGracePeriodSeconds) 75 -}}
  {{- $problems = append $problems "scorer.terminationGracePeriodSeconds must be at least 75: a scorer takes up to 60 seconds to finish the calls that are in flight, and calls that are cut off are charged as in doubt" -}}
{{- end -}}
{{- if lt (int $v.runner.terminationGracePeriodSeconds) 75 -}}
  {{- $problems = append $problems "runner.terminationGracePeriodSeconds must be at least 75: a runner lets the calls in flight end before it gives its jobs back" -}}
{{- end -}}
{{- range $name, $target := (get $v.targets.config "targets") | default dict -}}
  {{- if and (kindIs "map" $target) (kindIs "string" (get $target "api_key")) -}}
    {{- $problems = append $problems (printf "targets.config.targets.%s.api_key is a text: keys do not belong into values; put it into a Secret, name that in targets.keysSecret, and write api_key: {env: NAME}" $name) -}}
  {{- end -}}
{{- end -}}
{{- if and $v.monitoring.podMonitors (not $v.monitoring.apiKeySecret) (not $v.development.enabled) -}}
  {{- $problems = append $problems "monitoring.podMonitors is true and monitoring.apiKeySecret is empty: the API tells its figures only to who has a key; make one for Prometheus (`instructzero key`) and put it into a Secret" -}}
{{- end -}}
{{- if $problems -}}
  {{- fail (printf "\n\nThese values cannot work:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end }}
