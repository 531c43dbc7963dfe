# ruff: noqa: E501 - a pattern is easier to read on one line
"""The signature rules as data: what a line must say for a category to be named, and how much that weighs.

A rule is (category, weight, literals, pattern). Lines are matched in lower case. At least one literal (separated by `~`)
must occur before the pattern is tried, which makes hundreds of rules cheap. Weights: 9 names the cause beyond doubt,
6 to 8 is a plain statement of it, 3 to 5 a symptom that other causes have too, 1 to 2 a hint.

The signatures come from the error texts of the programs themselves (kernel, container runtime, Kubernetes, PostgreSQL, MySQL,
Redis, nginx, Envoy, JVM, CPython, Go, Node, common build tools). They were widened while looking at public failure logs, so
what they reach on those says that nothing is broken, not what to expect elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One signature. `literals` are lower-case strings of which one must occur before `pattern` is tried."""

    category: str
    weight: float
    literals: tuple[str, ...]
    pattern: re.Pattern[str]


# fmt: off
_TABLE: tuple[tuple[str, float, str, str], ...] = (
    # --- memory
    ("oom_memory", 9, "out of memory", r"out of memory: kill|killed process \d+|memory cgroup out of memory"),
    ("oom_memory", 9, "oomkill~oom-kill~oom_kill~oom killer", r"\boom[-_ ]?kill(?:ed|er|ing|:|\b)(?! ?(?:=|:) ?(?:0|false))"),
    ("oom_memory", 9, "outofmemory", r"(?<![a-z])outofmemory(?:error|exception)"),
    ("oom_memory", 8, "cuda", r"cuda (?:error: )?out of memory|cuda_error_out_of_memory"),
    ("oom_memory", 7, "exit", r"exit(?:ed)?[ _]?(?:with )?(?:code|status)?[ :=\"]*137\b|exitcode[\":= ]+137\b"),
    ("oom_memory", 8, "allocate memory~enomem~bad_alloc~alloc", r"cannot allocate memory|\benomem\b|std::bad_alloc|failed to (?:m|re)?alloc(?:ate)?\b.{0,40}(?:memory|bytes)|unable to allocate \d[\d.]* (?:[kmg]i?b|bytes)"),
    ("oom_memory", 8, "memoryerror", r"(?:^|[\s:.])memoryerror\b"),
    ("oom_memory", 8, "heap", r"java heap space|heap out of memory|reached heap limit|javascript heap|heap limit allocation failed"),
    ("oom_memory", 8, "oom command~maxmemory", r"oom command not allowed|used memory > '?maxmemory"),
    ("oom_memory", 8, "memorypressure~low on resource: memory~resource: memory", r"memorypressure[ =:]+(?:true|status is now)|nodehasinsufficientmemory|low on resource: memory|condition.{0,20}memorypressure"),
    ("oom_memory", 7, "out of memory", r"(?:err(?:or)?|fatal|died|crash\w*|killed|because|due to|runtime)\b.{0,60}out of memory|^(?:\w+: )?out of memory|out of memory(?: error|$)"),
    ("oom_memory", 6, "memory", r"(?:memory|rss) (?:usage|limit|utili[sz]ation).{0,40}(?:exceed|(?:9[5-9]|100)(?:\.\d+)? ?%)|(?:exceed\w*|over|beyond) (?:its |the )?(?:memory|rss) (?:soft |hard )?limit|memory limit exceeded"),
    ("oom_memory", 5, "killed", r"(?:^|\s)(?:\d+ )?killed\s+(?:python|node|java|\./|/|\w+\.(?:py|sh))|: killed$|received signal: ?(?:9|sigkill)|signal: killed|worker .{0,40}sigkill.{0,30}memory"),
    ("oom_memory", 5, "podoom~containeroom~memoryhigh~highmemory~memoryusage~memorypressure", r"(?:pod|container)oom\w*|high_?memory\w*|memory(?:high|usage(?:high|critical|warning)|pressure\w*)"),
    # --- cpu
    ("cpu_saturation", 8, "throttl", r"cputhrottlinghigh|cpu throttling|throttled by cpu|nr_throttled|cfs.{0,20}throttl|cpu.{0,30}throttled"),
    ("cpu_saturation", 7, "load average", r"load averages?[:= ]{1,3}(?:[2-9]\d|\d{3,})\b|load average.{0,30}(?:exceed|high|above|over)|(?:high|critical) load average"),
    ("cpu_saturation", 8, "gc overhead", r"gc overhead limit exceeded"),
    ("cpu_saturation", 6, "cpu", r"cpu(?: usage| utili[sz]ation| load)?[^\n]{0,25}\b(?:9[0-9]|100)(?:\.\d+)? ?%|cpu (?:saturat|starv|exhaust|pegged|overload)|(?:high|sustained|excessive) cpu\b|run ?queue.{0,20}(?:long|high|exceed)"),
    ("cpu_saturation", 7, "soft lockup~starvation~event loop~clock leap", r"bug: soft lockup|thread starvation or clock leap|event loop (?:is )?(?:blocked|lag|delay)|cpu starvation|watchdog: bug"),
    ("cpu_saturation", 5, "pause~gc", r"(?:gc|garbage collect\w*|stop-the-world).{0,40}(?:pause|took).{0,20}\b(?:\d{4,} ?ms|\d{1,3}(?:\.\d+)? ?s(?:ec)?\b)|detected jvm or host machine pause"),
    ("cpu_saturation", 5, "highcpu~cpuhigh~hostcpu~nodecpu", r"(?:highcpu|cpuhigh|cpuload|hostcpu|nodecpu)"),
    ("cpu_saturation", 5, "worker", r"all workers? (?:are )?busy|worker timeout.{0,20}cpu|no idle workers|max_children setting"),
    # --- disk
    ("disk_storage_full", 9, "no space left~enospc~errno 28~not enough space on the disk~not enough space on disk", r"no space left on device|\benospc\b|errno 28|not enough space on (?:the )?disk"),
    ("disk_storage_full", 9, "quota", r"disk quota exceeded|\bedquot\b"),
    ("disk_storage_full", 8, "diskpressure~ephemeral", r"diskpressure|low on resource: ephemeral-storage|ephemeral[- ]storage.{0,60}exceed|nodehasdiskpressure"),
    ("disk_storage_full", 8, "disk~filesystem~file system~volume~partition", r"(?:\b(?:disk|file ?system|volume|partition)|(?<![^\s\"\'])/[\w/.-]{1,100})\b.{0,40}(?:is |are |almost |nearly )(?:\w+ )?full\b|(?:disk|filesystem|partition).{0,30}(?:9[5-9]|100) ?%|(?:out of|insufficient|low|not enough|running out of) (?:free )?disk(?: space)?|disk (?:space )?(?:exhausted|watermark \[\d+%\] exceeded)"),
    ("disk_storage_full", 8, "could not extend~could not write~flood stage~flood-stage", r"could not extend file|could not write (?:to|block).{0,80}no space|flood[- ]stage (?:disk )?watermark"),
    ("disk_storage_full", 7, "misconf", r"misconf (?:redis is configured to save|errors writing)"),
    ("disk_storage_full", 6, "read-only file", r"read-only file ?system"),
    ("disk_storage_full", 6, "fillingup~diskfull~diskspace~outofdisk", r"(?:fillingup|diskfull|diskspace|outofdisk|filesystemalmostout)"),
    ("disk_storage_full", 6, "inode", r"(?:out of|no free|no) inodes?|inodes? (?:exhausted|usage.{0,20}(?:9[5-9]|100) ?%)"),
    # --- connections
    ("connection_exhaustion", 9, "too many connections~too many clients~remaining connection slots~max_connections~max number of clients~max_user_connections", r"too many (?:client )?connections|too many clients already|remaining connection slots are reserved|max(?:imum)? number of clients reached|max_user_connections|max_connections.{0,30}(?:reached|exceed)|exceed.{0,30}max_connections"),
    ("connection_exhaustion", 9, "pool", r"pool (?:is )?(?:exhausted|full|empty|limit)|queuepool limit|exhausted.{0,30}\bpool|pool.{0,60}(?:timed? ?out|timeout).{0,40}(?:connection|waiting)|connection is not available, request timed out|(?:no (?:available|free|idle)|unable to (?:get|acquire|obtain)|could not (?:get|acquire|obtain)|timed? ?out (?:waiting|acquiring|getting)).{0,40}(?:connection|resource).{0,40}pool|pool error timeout waiting for idle"),
    ("connection_exhaustion", 8, "waiting for connection~acquiring a connection~acquire connection~waiting for idle object~acquiring connection", r"time(?:d )?out(?: while)? (?:waiting for|acquiring)(?: a| an| idle| available| free)* (?:connection|object)|(?:failed|unable|could not) to? ?acquire (?:a )?connection|timeout acquiring a connection"),
    ("connection_exhaustion", 9, "too many open files~emfile~enfile", r"too many open files|\bemfile\b|\benfile\b"),
    ("connection_exhaustion", 8, "eaddrnotavail~cannot assign requested~ephemeral port~port exhaust", r"eaddrnotavail|cannot assign requested address|(?:ephemeral )?ports? exhaust\w*|out of ephemeral ports"),
    ("connection_exhaustion", 8, "worker_connections~nf_conntrack~conntrack", r"worker_connections are not enough|nf_conntrack: table full|conntrack table full"),
    ("connection_exhaustion", 6, "connection limit~connection_limit~sockets", r"connection[ _]limit (?:exceeded|reached)|(?:out of|no more) sockets|too many (?:open )?sockets"),
    ("connection_exhaustion", 5, "hikaripool", r"hikaripool-\d+ - (?:connection is not available|pool stats .{0,20}active=(\d+), idle=0, waiting=[1-9])"),
    ("connection_exhaustion", 6, "toomanyconnections~poolexhaust", r"(?:toomanyconnections|poolexhaust)"),
    # --- quota and rate limits
    ("quota_rate_limit", 8, "429", r"(?:http|status|code|error|returned|answered|responded?|got|response|server)[^\n]{0,24}(?<!,)(?<!\" \d\d\d )\b429\b(?!,)|\b429\b[ :-]{1,3}(?:too many|client error|rate)|\" 429 \d"),
    ("quota_rate_limit", 9, "too many requests~toomanyrequests", r"too many requests|toomanyrequests"),
    ("quota_rate_limit", 9, "rate limit~rate-limit~ratelimit~rate_limit", r"rate[-_ ]?limit(?:ed|ing)?\b.{0,25}(?:exceed|reach|hit|error|by|exhaust|for)|(?:exceed\w*|reach\w*|hit|over|secondary|api|pull|abuse|secondary) (?:\w+ ){0,4}rate[- _]?limit|rate[_-]?limit[_-]?exceeded|ratelimiterror|(?:been|being|is|was|are|were) rate[- ]?limit(?:ed|ing)"),
    ("quota_rate_limit", 9, "quota", r"(?:exceed\w*|over|insufficient|out of|failed) (?:\w+ ){0,3}quota(?!s? check)|quota (?:\w+ ){0,4}(?:exceed\w*|exhaust\w*|reached)|resource[_ ]exhausted.{0,60}quota|insufficient_quota|quotaexceeded|forbidden: failed quota"),
    ("quota_rate_limit", 9, "throttl", r"throttlingexception|throttling: rate exceeded|request(?:s)? (?:was|were|is|are|being) throttled|requestlimitexceeded|provisionedthroughputexceeded|slowdown: please reduce|client-side throttling|api.{0,20}throttl"),
    ("quota_rate_limit", 6, "limit exceeded~limitexceeded~limit reached", r"(?:request|usage|daily|monthly|hourly|call|api|spend\w*|billing) limit (?:exceeded|reached)|limitexceededexception|limits? exceeded.{0,20}requests"),
    ("quota_rate_limit", 8, "per container is~maximum memory usage~minimum memory usage", r"(?:maximum|minimum) (?:cpu|memory)(?: usage)? per (?:container|pod) is"),
    # --- scheduling
    ("scheduling_capacity", 9, "nodes are available~nodes available", r"\b0/\d+ nodes (?:are )?available(?!.{0,200}persistentvolumeclaim)"),
    ("scheduling_capacity", 8, "failedscheduling", r"failedscheduling(?!.{0,200}persistentvolumeclaim)"),
    ("scheduling_capacity", 8, "insufficient cpu~insufficient memory~insufficient nvidia~insufficient gpu~insufficient pods~insufficient ephemeral", r"insufficient (?:cpu|memory|nvidia\S*|gpu|pods|ephemeral-storage)"),
    ("scheduling_capacity", 7, "taint~untolerated~affinity~unschedulable", r"untolerated taint|had taint|didn't (?:match|tolerate) |node\(s\) (?:were|had).{0,20}(?:unschedulable|taint)|unschedulable\b(?!.{0,10}(?:=|:) ?false)|anti-affinity rules"),
    ("scheduling_capacity", 7, "notriggerscaleup~insufficientinstancecapacity~max node group~insufficient capacity~resourceinsufficient", r"notriggerscaleup|pod didn't trigger scale-up|insufficientinstancecapacity|max node group size reached|insufficient capacity|zone_resource_pool_exhausted"),
    ("scheduling_capacity", 5, "pod", r"podnotscheduled|pods? (?:stuck|remain\w*|are) (?:in )?pending|podpending"),
    # --- images and artefacts
    ("image_pull_artifact", 9, "errimagepull~imagepullbackoff~back-off pulling image~invalidimagename~imageinspecterror~errimageneverpull", r"errimagepull|imagepullbackoff|back-off pulling image|invalidimagename|imageinspecterror|errimageneverpull"),
    ("image_pull_artifact", 9, "manifest", r"manifest unknown|manifest for .{1,200} not found|no matching manifest"),
    ("image_pull_artifact", 9, "pull access denied~repository does not exist~pull image~pulling image~pull model~failed to pull", r"pull access denied|repository does not exist or may require|failed to (?:pull|resolve) (?:and unpack )?(?:image|reference|artifact|model)|error (?:while )?pulling image|unable to pull image"),
    ("image_pull_artifact", 7, "artifact", r"artifacts? (?:\S+ )?(?:not found|could not be found|missing|has expired|does not exist)|unable to (?:download|find) (?:any )?artifact|no artifacts? (?:found|were found)|could not find artifact"),
    ("image_pull_artifact", 6, "image", r"image (?:\S+ )?(?:not found|does not exist|could not be found)|no such image|failed to (?:extract|unpack) layer|checksum mismatch.{0,30}(?:layer|image)"),
    # --- configuration
    ("config_env_error", 9, "createcontainerconfigerror~configmap~secret", r"createcontainerconfigerror|(?:configmap|secret)s? \\?[\"']?[\w./-]+\\?[\"']? not found|couldn't find key .{1,80} in (?:configmap|secret)|references? non-existent (?:configmap|secret|config key)"),
    ("config_env_error", 8, "environment~env var~env_var~environ", r"(?:environment|env) ?(?:variable|var)s? .{0,80}(?:\bnot (?:set|found|defined|provided)|missing|required|undefined|\bunset|\bempty|invalid|must be set)|(?:missing|required|undefined|unset|invalid|no) (?:\w+ ){0,2}(?:environment|env)[ _]?var(?:iable)?s?\b|environ\[|os\.environ|must be (?:set|provided|defined) in (?:the )?env"),
    ("config_env_error", 8, "config~setting~propert~yaml~toml~directive", r"(?:invalid|bad|malformed|missing|unknown|wrong|unsupported|unrecogni[sz]ed|incorrect|no such) (?:\w+ ){0,2}(?:config(?:uration)?|settings?|propert(?:y|ies)|directive|option in)\b|(?<![\w./-])(?:config(?:uration)?|settings?)\b(?!\.\w)(?: file| error|: | value)?[^\n]{0,40}\b(?:error|invalid|is missing|not found|malformed|cannot be parsed|parse error|failed to (?:parse|load)|does not exist)|configuration error|configerror|could(?: not|n't) (?:load|parse|read|find) (?:\w+ ){0,3}config|failed to (?:load|parse|read) (?:\w+ ){0,3}(?:config|settings|properties|yaml|toml)|improperlyconfigured|misconfigur"),
    ("config_env_error", 8, "unknown directive~emerg", r"unknown directive|\[emerg\].{0,60}(?:invalid|unknown|unexpected|duplicate|directive|not allowed|no \"|host not found in upstream)"),
    ("config_env_error", 7, "could not resolve placeholder~failed to bind properties~no qualifying bean~applicationcontextexception", r"could not resolve placeholder|failed to bind properties|binding to target .{0,120}failed"),
    ("config_env_error", 7, "keyerror", r"keyerror: '[a-z_0-9]*(?:_url|_key|_host|_port|_token|_secret|_dsn|_password|_env|_id|_name|_path)'"),
    ("config_env_error", 7, "invalid value~unknown flag~flag provided but not defined~unrecognized arguments~unknown option~invalid argument", r"invalid value .{0,80}(?:for|of) (?:flag|option|parameter|setting|key|field|env|\"|'|--)|unknown flag|flag provided but not defined|unrecognized (?:arguments|option)|unknown (?:command[- ]line )?option"),
    ("config_env_error", 7, "validation error~required field~field required", r"\d+ validation errors? for \w*(?:settings|config)|missing required (?:field|key|parameter|option|value|argument|setting)|field required.{0,40}type=missing"),
    ("config_env_error", 7, "minimum memory limit~spec.~createcontainererror~must be less than or equal to", r"minimum memory limit allowed|createcontainererror|spec\.\S+: (?:invalid value|required value|unsupported value)|must be less than or equal to (?:cpu|memory) limit"),
    ("config_env_error", 6, "not set~unset~required~undefined~ empty~missing~not configured~no default value", r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+ (?:(?:is|was) )?(?:not set|required|undefined|empty|missing|unset)\b|is not configured|no default value (?:for|and)"),
    ("config_env_error", 6, "database", r"(?:fatal|error).{0,40}database \\?\"[^\"]+\\?\" does not exist|unknown database '"),
    ("config_env_error", 6, "invalid port~invalid url~invalid uri~invalid dsn~unsupported scheme~no schema supplied~invalid connection string", r"invalid (?:port|url|uri|dsn|connection string)|unsupported (?:url )?scheme|no schema supplied|port .{0,20}out of range"),
    ("config_env_error", 6, "eaddrinuse~address already in use", r"eaddrinuse|address already in use"),
    # --- deploys
    ("deploy_regression", 9, "progressdeadlineexceeded~exceeded its progress deadline", r"progressdeadlineexceeded|exceeded its progress deadline"),
    ("deploy_regression", 9, "migrat", r"\bmigrat\w{0,12}\b.{0,100}(?:lock timeout|waiting (?:for|on).{0,30}lock|lock (?:wait|not available)|could not (?:obtain|acquire).{0,20}lock|could not be locked|blocked|timed? ?out|held by|failed|error|stuck|dirty)|(?:lock timeout|canceling statement|waiting for (?:\w+ ){0,2}lock|could not (?:obtain|acquire).{0,20}lock).{0,100}migrat|(?:failed|unable|error|cannot|could not) (?:\w+ ){0,3}migrat"),
    ("deploy_regression", 8, "rollback~roll back~rolled back~rolling back", r"(?:helm|deploy\w*|release|rollout|upgrade|canary|version|automatic\w*|auto)\b.{0,60}roll(?:ed|ing)?[ -]?back|roll(?:ed|ing)?[ -]?back (?:to |the )?(?:\w+ ){0,2}(?:deploy\w*|release|version|revision|v?\d+\.\d+)"),
    ("deploy_regression", 8, "rollout~upgrade failed~deployment~release~canary~deploy", r"(?:rollout|deploy(?:ment)?|release|upgrade|canary)(?: \S+){0,3} (?:failed|is failing|stuck|timed out|aborted|degraded|unhealthy)\b|upgrade failed|(?:failed|error) (?:to )?(?:deploy|roll out|upgrade release)|canary (?:analysis|check).{0,20}fail"),
    ("deploy_regression", 8, "after~since~following", r"(?:after|since|following|right after|starting with) (?:the |this |a )?(?:\w+ ){0,3}(?:deploy(?:ment)?|rollout|release|upgrade|version bump|chart (?:bump|upgrade)|v?\d+\.\d+\.\d+)\b"),
    ("deploy_regression", 7, "incompatible~schema version~column~no such column~undefined_column~undefined column", r"column \\?[\"']?[\w.]+\\?[\"']? (?:of relation .{1,60} )?does not exist|unknown column '|no such column|schema version.{0,30}(?:mismatch|expected|behind|ahead)|(?:pending|unapplied) migrations?|relation \\?\"[\w.]+\\?\" does not exist|incompatible (?:api|schema|protocol|version)"),
    ("deploy_regression", 6, "kubedeployment~rolloutstuck~deploymentgeneration", r"kubedeployment(?:rolloutstuck|generationmismatch|replicasmismatch)|rolloutstuck"),
    # --- code defects
    ("code_defect_crash", 9, "segfault~segmentation~sigsegv~sigabrt~sigbus~sigill~core dumped~general protection", r"segfault at|segmentation (?:fault|violation)|\bsig(?:segv|abrt|bus|ill|fpe)\b|core dumped|general protection fault"),
    ("code_defect_crash", 8, "exit", r"exit(?:ed)?[ _]?(?:with )?(?:code|status)?[ :=\"]*(?:139|134|132|136)\b"),
    ("code_defect_crash", 9, "panic", r"^(?:.{0,60}\s)?panic: |panicked at|kernel panic(?! - not syncing)|goroutine \d+ \[running\]|fatal error: (?:all goroutines|concurrent map|stack overflow|unexpected signal)|\[panic\]|runtime\.gopanic"),
    ("code_defect_crash", 9, "nullpointer~null pointer~nil pointer~npe", r"nullpointerexception|null pointer dereference|nil pointer dereference|null reference"),
    ("code_defect_crash", 8, "error:", r"\b(?:typeerror|attributeerror|nameerror|indexerror|zerodivisionerror|unboundlocalerror|recursionerror|referenceerror|rangeerror|notimplementederror|valueerror|importerror|modulenotfounderror|syntaxerror|indentationerror|assertionerror|unicode(?:de|en)codeerror|keyerror)\b: "),
    ("code_defect_crash", 8, "exception~error~unhandled~uncaught", r"\b(?:classcast|indexoutofbounds|arrayindexoutofbounds|stringindexoutofbounds|illegalstate|illegalargument|unsupportedoperation|concurrentmodification|numberformat|arithmetic|noclassdeffound|nosuchmethod|nosuchelement|invalidoperation|keynotfound|objectdisposed|nullreference|formatexception|argumentnull|classnotfound|negativearraysize|inputmismatch)(?:exception|error)\b"),
    ("code_defect_crash", 8, "cannot read prop~is not a function~undefined method~undefined is not~is not defined~cannot set prop", r"cannot (?:read|set) propert(?:y|ies) (?:of|')|is not a function|undefined (?:local variable or )?method|undefined is not|\breferenceerror: \w+ is not defined"),
    ("code_defect_crash", 5, "traceback (most~unhandled~uncaught~unhandledpromise", r"traceback \(most recent call last\)|unhandledpromiserejection|uncaught ?(?:\w* ?exception|error)|unhandled (?:\w+ )?(?:exception|rejection|error)"),
    ("code_defect_crash", 5, "exception in thread~thread '", r"exception in thread|thread '.{0,60}' panicked"),
    ("code_defect_crash", 7, "command not found~exit~: not found", r"command not found|exit(?:ed)?[ _]?(?:with )?(?:code|status) 127\b|sh: (?:line )?\d+: .{1,80}: not found$"),
    ("code_defect_crash", 7, "syntax error~unexpected token~unexpected end of file", r"syntax error(?: near|:|,)|unexpected token|unexpected end of file"),
    ("code_defect_crash", 7, "addresssanitizer~undefinedbehaviorsanitizer~double free~heap corruption~stack smashing~heap-use-after-free~stack overflow~stackoverflow", r"(?:address|thread|leak|memory)sanitizer:|double free|corrupted size|heap corruption|stack smashing|heap-use-after-free|stackoverflow(?:error|exception)|stack overflow"),
    ("code_defect_crash", 4, "crashloop~back-off restarting~main process exited", r"crashloopbackoff|back-off restarting failed|crashlooping|main process exited.{0,40}(?:dumped|abrt|segv)"),
    ("code_defect_crash", 5, "assert~check failed", r"assertion .{0,80}failed|assert(?:ion)? failure|check failed:"),
    # --- probes
    ("health_probe", 7, "probe", r"(?:liveness|readiness|startup) probe (?:failed|errored|error)|probe failed|unhealthy.{0,40}probe|failed (?:liveness|readiness|startup) probe|will be restarted.{0,20}probe"),
    ("health_probe", 6, "health check~healthcheck~health-check", r"health[- ]?check(?:s|ing)?\b.{0,40}(?:fail|unhealthy|timed? ?out|timeout|status:? ?(?:40\d|50\d)|returned (?:40\d|50\d))|(?:failed|failing|unhealthy).{0,20}health[- ]?checks?|container is unhealthy|target.{0,30}unhealthy"),
    ("health_probe", 3, "sigterm~signal 15", r"(?:received|got|caught)\b.{0,12}(?:sigterm|signal 15)"),
    # --- dns
    ("dns_resolution", 9, "no such host~nxdomain~enotfound~eai_again~eai_noname~servfail", r"no such host|\bnxdomain\b|\benotfound\b|\beai_again\b|eai_noname|\bservfail\b"),
    ("dns_resolution", 9, "name resolution~name or service not known~nodename nor servname", r"(?:temporary )?failure in name resolution|name or service not known|nodename nor servname|name resolution (?:failed|error|failure)|nameresolutionerror"),
    ("dns_resolution", 9, "resolve", r"(?:could ?n[o']t|cannot|can't|unable to|failed to|failure to|error) (?:be )?resolv\w* (?:the )?(?:host|address|hostname|domain|dns|name|proxy|server|ip|[a-z0-9-]+\.[a-z0-9.-]+(?: |:|$))|(?<![\w-])resolver (?:\S+ )?(?:timed out|failed to)|could not be resolved \(\d+:|host (?:name )?(?:could not be|cannot be|not) resolved|host not found in upstream"),
    ("dns_resolution", 9, "unknownhost~host not found~getaddrinfo~gaierror", r"unknownhostexception|unknown host\b|host not found|getaddrinfo (?:failed|error|e[a-z_]+|for)|gaierror|getaddrinfo\(\)"),
    ("dns_resolution", 7, "dns", r"\bdns\b.{0,50}(?:fail|timed? ?out|timeout|error|unreachable|not respond|no answer|refused|lookup)|lookup .{1,80} on .{1,40}:53|coredns(?:down|.{0,20}(?:error|crash))|(?:fail|error|unable).{0,40}\bdns\b"),
    # --- network
    ("network_connectivity", 6, "connection refused~econnrefused~actively refused~connectionrefused", r"connection refused(?!.{0,40}while connecting to upstream)|econnrefused|actively refused|connectionrefusederror"),
    ("network_connectivity", 6, "connection reset~econnreset~reset by peer~connectionreset", r"connection reset(?!.{0,80}upstream)|econnreset|reset by peer"),
    ("network_connectivity", 8, "no route to host~network is unreachable~ehostunreach~enetunreach~host is unreachable~network unreachable~noroutetohost", r"no route to host|network is unreachable|ehostunreach|enetunreach|host is unreachable|network unreachable|noroutetohost"),
    ("network_connectivity", 6, "i/o timeout~connection timed out~connect timeout~etimedout~connecttimeout~connection timeout~connect timed out", r"i/o timeout|connect(?:ion)? timed out(?!.{0,40}while (?:connecting to|reading).{0,30}upstream)|connect(?:ion)? ?timeout\b|\betimedout\b|dial tcp .{1,60}timeout"),
    ("network_connectivity", 8, "packet loss~packets dropped~dropped packet~network partition~network policy~networkpolicy~link is down~link down~no carrier~carrier lost", r"\b(?:[1-9]\d?|100)(?:\.\d+)?% packet loss|packet loss (?:detected|observed|on)|network partition|(?:denied|dropped|blocked) by (?:\w+ )?network ?policy|link (?:is )?(?:down|not ready)|no carrier|carrier lost|(?:interface|nic|port) \S+ (?:is |went )?down"),
    ("network_connectivity", 4, "broken pipe~epipe~connection closed~connection aborted~unexpected eof~socket hang up~connection lost~server closed the connection~could not connect", r"broken pipe|\bepipe\b|connection (?:was )?(?:closed|aborted|lost)(?: (?:by|unexpectedly|abruptly|while))|unexpected eof|socket hang up|lost connection to|server closed the connection unexpectedly|could not connect to (?:server|the endpoint|host)"),
    ("network_connectivity", 6, "firewall~iptables~ufw block~security group", r"firewall.{0,40}(?:block|drop|den)|\[ufw block\]|(?:blocked|denied|dropped) by (?:the )?(?:firewall|security group|iptables)"),
    # --- routing
    ("service_routing", 9, "no endpoints~no healthy upstream~no live upstreams~no available server~no active endpoints", r"no (?:active |ready |available )?endpoints (?:available|for|found)|no healthy upstream|no live upstreams|no (?:available )?server is available to handle|does not have any active endpoint|no available server"),
    ("service_routing", 8, "upstream", r"upstream connect error|(?:connect\(\)|connection|recv\(\)|connect).{0,80}while (?:connecting to|reading response header from|sending request to) upstream|upstream (?:prematurely closed|timed out|unavailable|server temporarily disabled|not found)|upstream.{0,40}(?:502|503|504)"),
    ("service_routing", 7, "bad gateway~gateway time~502~gateway", r"502 bad gateway|504 gateway time-?out|bad gateway\b|\" 50[24] \d|(?:http|status)(?:/[\d.]+)?[ :=\"]{1,4}50[24]\b"),
    ("service_routing", 8, "ingress~selector~targetport~target port~route", r"ingress.{0,60}(?:not found|does not|no .{0,20}backend|class.{0,20}(?:not|unknown|does not)|ignoring|invalid)|selector.{0,60}(?:no|not|doesn't|mismatch).{0,20}match|no (?:matching )?(?:route|virtual host|backend)s? (?:found|match|for|matched|configured)|service .{0,60}(?:port|selector).{0,30}(?:mismatch|not found)|backend .{0,40}(?:is down|has no server available|not found|unhealthy)|route[_ ]not[_ ]found|\bno_route\b|cluster_not_found"),
    ("service_routing", 4, "503", r"503 service (?:temporarily )?unavailable|\" 503 \d"),
    # --- tls
    ("tls_cert_expiry", 9, "expired", r"certificate (?:has |is |was )?expired|certificate.{0,60}expired|certificateexpired|cert(?:s)? .{0,40}(?:has |have |is )?expired|expired certificate|notafter:? "),
    ("tls_cert_expiry", 9, "x509", r"x509: (?!.{0,60}loaded)"),
    ("tls_cert_expiry", 9, "certificate_verify_failed~certificate verify failed~sslcertverification~unable to get local issuer~self signed certificate~self-signed certificate~cert_has_expired~unable_to_verify~pkix path~certpathvalidator~certificateexception", r"certificate[_ ]verify[_ ]failed|sslcertverification|unable to get local issuer|self[- ]signed certificate|cert_has_expired|unable_to_verify|pkix path|certpathvalidator|certificateexception"),
    ("tls_cert_expiry", 8, "handshake", r"(?:ssl|tls)\S* .{0,40}handshake.{0,30}(?:fail|error|alert|timeout|eof)|handshake[_ ]fail|sslhandshakeexception|(?:remote error: )?tls: (?:bad|unknown|handshake|internal|failed)|ssl_do_handshake\(\) failed|ssl_error_"),
    ("tls_cert_expiry", 8, "certificate~cert ", r"certificate.{0,60}(?:will expire|expires? (?:in|on)|not (?:yet )?valid|is not trusted|invalid|revoked|unknown|mismatch|unknown ca|does not match|bad)|(?:invalid|bad|untrusted|unknown|revoked) (?:\w+ )?certificate|failed to (?:verify|renew|issue) (?:\w+ )?certificate|cert\w*(?:expir)\w*"),
    ("tls_cert_expiry", 6, "wrong version number~no alternative certificate subject~err_cert~protocol version", r"ssl.{0,40}wrong version number|no alternative certificate subject|err_cert_|tlsv1 alert protocol version|unsupported protocol.{0,20}(?:ssl|tls)"),
    # --- authentication and authorisation
    ("authn_authz", 9, "password authentication failed~authentication failed~authentication failure~access denied for user~auth failed~wrongpass~noauth~login failed~invalid password~incorrect password~wrong password", r"password authentication failed|(?:authentication|auth|login) (?:has )?fail(?:ed|ure)|access denied for user|wrongpass |noauth authentication|(?:invalid|incorrect|wrong|bad) (?:username or |user(?:name)?/)?password|sasl authentication failed"),
    ("authn_authz", 8, "permission denied~eacces~access denied~accessdenied~access_denied~not permitted~eperm", r"permission denied|\beacces\b|access[_ ]?denied(?:exception)?(?! for user)|operation not permitted|\beperm\b"),
    ("authn_authz", 8, "is forbidden~forbidden", r"is forbidden: (?:user|service ?account)|cannot (?:get|list|watch|create|update|delete|patch) resource|403 forbidden|forbidden \(403\)|\b403\b.{0,20}forbidden|forbidden.{0,40}\b403\b|error: forbidden"),
    ("authn_authz", 8, "unauthorized~unauthenticated~401~unauthorised", r"401 unauthori[sz]ed|\bunauthenticated\b|\bunauthori[sz]ed\b|(?:http|status|code|returned|error|response)[^\n]{0,20}(?<!,)(?<!\" \d\d\d )\b401\b(?!,)|\" 401 \d"),
    ("authn_authz", 7, "403", r"(?:http|status|code|returned|error|response|api)[^\n]{0,20}(?<!,)(?<!\" \d\d\d )\b403\b(?!,)|\" 403 \d|\(http 403\)"),
    ("authn_authz", 9, "token~jwt~credential~api key~api_key~apikey~access key~signature", r"(?:token|jwt|credentials?|session|api[ _]?key|access key)(?: \S+){0,3} (?:has |have |is |are |was |were )?(?:\w+ )?(?:expired|invalid|revoked|rejected|malformed|not valid|incorrect)\b|(?:expired|invalid|revoked|bad|incorrect|missing|wrong) (?:\w+ ){0,2}(?:token|jwt|credentials?|api[ _]?key|access key|signature)|expiredtoken|tokenexpired|invalidaccesskeyid|signaturedoesnotmatch|credentials? could not be loaded|could not load credentials|no (?:valid credentials?|credentials? (?:found|provided|available|were))|unable to locate credentials|could not read (?:username|password) for"),
    ("authn_authz", 8, "not authorized~not authorised~unauthorizedoperation~insufficient privilege~insufficient permission~not accessible by integration~must be owner~insufficient_scope~permission~privilege", r"not authori[sz]ed|unauthorizedoperation|insufficient (?:privileges?|permissions?|scope)|not accessible by integration|must be owner|insufficient_scope|(?:lacks?|missing|no|without|does not have|doesn't have) (?:the )?(?:\w+ ){0,3}(?:permissions?|privileges?)(?: to)?\b"),
    ("authn_authz", 7, 'failed password~invalid user~pam~no pg_hba~role "~does not exist~dubious ownership~publickey~break-in', r"failed password for|invalid user|pam.{0,20}authentication failure|no pg_hba\.conf entry|role \\?\"[^\"]+\\?\" (?:does not exist|is not permitted)|detected dubious ownership|permission denied \(publickey|possible break-in attempt"),
    # --- dependencies
    ("dependency_failure", 8, "circuit", r"circuit ?breaker.{0,60}(?:open|tripped)|circuit (?:is )?open|circuitbreakeropen|callnotpermitted"),
    ("dependency_failure", 7, "50~unavailable~internal server", r"(?:upstream|downstream|remote|third[- ]party|external|provider|api|backend|dependency|gateway|service|server|host|call(?:ing)?|request)\b[^\n]{0,60}\b(?:returned|responded|answered|replied|failed|status|error|got)[^\n]{0,40}\b(?:500|503|5xx)\b|(?:got|received|returned|responded with|answered) (?:http )?(?:status )?(?:code )?(?:500|503)\b.{0,40}(?:from|calling)|(?:httpservererror|serviceunavailable|internalservererror)\w*.{0,60}(?:from|calling|https?://)"),
    ("dependency_failure", 7, "outage~third-party~third party~dependency", r"(?:third[- ]party|provider|vendor|partner|cloud|region\w*|aws|gcp|azure) .{0,40}(?:outage|is down|unavailable|incident)|(?:upstream|downstream) (?:service |dependency |provider )?(?:\S+ )?(?:is )?(?:down|unavailable|outage|unhealthy|failing)|dependency (?:check )?(?:failed|failure|unavailable|is down|unhealthy|timed out)|dependencyfailure"),
    ("dependency_failure", 6, "timed out~timeout~deadline", r"(?:call(?:ing)?|request(?:ing)?|requests?|query(?:ing)?|fetch(?:ing)?|response|waiting (?:for|on)|rpc)\b.{0,20}\b(?:to|from|for|of|on)?\b ?\S*[a-z][\w.-]*.{0,50}(?:timed out|timeout|deadline exceeded)|read timed out|readtimeout|read timeout|deadline ?exceeded|deadline_exceeded|sockettimeoutexception|(?:timed out|timeout) (?:calling|contacting|waiting for(?: a)? (?:response|reply)|while (?:calling|waiting|requesting)|after \d+ ?m?s)"),
    ("dependency_failure", 5, "service", r"(?:-(?:service|api|svc)|\w{1,40}service)\b[^\n]{0,40}(?:is )?(?:unavailable|not (?:available|responding|reachable)|down\b)|service unavailable|statuscode\.unavailable|code = unavailable"),
    ("dependency_failure", 4, "retries~retry~fallback~gave up~stale~cached", r"max retries exceeded|retries exhausted|gave up after \d+|(?:all|no more) retr(?:ies|y)|(?:exhausted|exceeded) (?:all )?(?:\w+ )?retries|(?:serving|using) (?:stale|fallback)|serving cached"),
    # --- databases
    ("database_slow_or_locked", 9, "deadlock", r"deadlock (?:detected|found|victim)|deadlocked|deadlockexception|lock_deadlock|was deadlocked"),
    ("database_slow_or_locked", 9, "lock wait timeout~lock timeout~could not obtain lock~database is locked~sqlite_busy~locknotavailable~waiting for sharelock~waiting for exclusivelock~waiting for accessexclusivelock~waiting for rowexclusivelock~waiting for accesssharelock~still waiting for", r"lock wait timeout|due to lock timeout|lock timeout|could not obtain lock|database (?:table )?is locked|sqlite_busy|locknotavailable|still waiting for \w*lock|waiting for \w+lock on"),
    ("database_slow_or_locked", 8, "slow query~slow sql~slow_query~long-running~long running~duration:~query_time~took", r"slow[ _-](?:query|sql|statement)|long[- ]running (?:query|transaction|statement)|duration: \d{4,}(?:\.\d+)? ms|query_time: (?:[2-9]|\d{2,})|\b(?:query|statement|sql)\b(?!\.).{0,40}took \d{4,} ?ms"),
    ("database_slow_or_locked", 8, "statement timeout~query timeout~canceling statement~statement_timeout~max_execution_time~query execution was interrupted", r"canceling statement due to (?:statement|lock)|statement[_ ]timeout|query (?:\w+ )?time(?:d )?out|maximum statement execution time exceeded"),
    ("database_slow_or_locked", 8, "replica~replication~recovery", r"repli(?:ca(?:tion)?) lag|\brepl\w{0,12}\b.{0,40}(?:lag(?:ging)?|behind|broken|stopped|delay)|seconds_behind_(?:master|source)[ :=]+[1-9]\d|canceling statement due to conflict with recovery"),
    ("database_slow_or_locked", 8, "read-only transaction~read only transaction~read-only mode~read_only~readonly you can't write", r"read[- ]only transaction|(?:database|server|instance|mysql).{0,30}(?:in |is )?read[-_ ]only|readonly you can't write"),
    ("database_slow_or_locked", 7, "checkpoint~autovacuum~vacuum~seq scan~sequential scan~wraparound~idle in transaction", r"checkpoints are occurring too frequently|(?:auto)?vacuum.{0,60}(?:blocked|cancel|not keeping|stuck|delay|behind|wraparound)|seq(?:uential)? scan on|must be vacuumed within|transaction id wraparound|idle[- ]in[- ]transaction"),
    ("database_slow_or_locked", 7, "could not serialize~serialization failure~writeconflict~innodb", r"could not serialize access|serialization failure|writeconflict|innodb: .{0,60}(?:long semaphore wait|page cleaner|corrupt)"),
    # --- queues
    ("queue_backlog", 8, "lag", r"consumer(?:[- _]group)?.{0,60}\blag\b(?!.{0,6}[=:]? ?0\b)|\blag\b.{0,30}consumer|kafka\w*lag|consumerlag|consumergrouplag|offset lag|\blag[=:] ?\d{4,}|lag (?:is )?(?:growing|increas\w*|exceed\w*|above|high|\d{4,})"),
    ("queue_backlog", 8, "queue~backlog", r"queue(?:s| \S+| depth| size| length)?.{0,40}(?:depth|size|length|backlog|backed up|growing|is full|overflow|high|exceed\w*|above|saturated|\d{4,} (?:messages|jobs|tasks))|backlog.{0,40}(?:grow|increas|exceed|\d{3,}|high|of)|queue ?full|\d{3,} (?:messages|jobs|tasks|events|items) (?:are )?(?:pending|waiting|queued|in queue|behind|unacked)"),
    ("queue_backlog", 8, "dead-letter~dead letter~dlq~deadletter", r"(?:dead[- ]?letter|\bdlq\b).{0,60}|to (?:the )?(?:dead[- ]?letter|dlq)"),
    ("queue_backlog", 6, "rebalanc", r"(?:group|consumer|partition).{0,60}rebalanc|\brebalanc\w{1,8}\b.{0,60}(?:group|consumer|partition)|commitfailedexception|max\.poll\.interval"),
    ("queue_backlog", 8, "split brain~split-brain~under-replicated~underreplicated~offline partition~memory resource limit alarm~not enough replicas~notenoughreplicas~flow control", r"split[- ]brain|under-?replicated|offline partitions?|memory resource limit alarm|notenoughreplicas|network partition.{0,20}rabbit"),
    # --- volumes
    ("storage_volume_mount", 9, "failedmount~mountvolume~attachvolume~failedattachvolume~unable to attach or mount~multi-attach", r"failedmount|mountvolume\.|attachvolume|failedattachvolume|unable to attach or mount|multi-attach error"),
    ("storage_volume_mount", 9, "persistentvolumeclaim~pvc~storageclass~provisioningfailed", r"persistentvolumeclaims?.{0,60}(?:not found|not bound|is lost|pending|unbound|failed)|unbound immediate persistentvolumeclaim|(?:pvc|claim)\b.{0,40}(?:pending|not bound|unbound|lost|failed)|storageclass.{0,60}(?:not found|does not exist)|provisioningfailed|failed to provision volume"),
    ("storage_volume_mount", 8, "mount", r"mount(?:ing)?(?:\(\d\))?\b[^\n]{0,60}(?:fail(?:ed|ure)|error|exit status 32|wrong fs type|timed out|stale|access denied|permission denied|no such device|bad superblock|does not exist)|(?:fail(?:ed|ure)|unable|could not|cannot|error)(?: to)? (?:un)?mount|wrong fs type|special device .{1,60} does not exist|mount point does not exist"),
    ("storage_volume_mount", 8, "stale file handle~estale~stale nfs~nfs: server~volume", r"stale (?:nfs )?file handle|\bestale\b|nfs: server .{1,60}not responding|volume .{0,80}(?:already exclusively attached|failed to attach|not attached|is already attached|node affinity conflict|could not be found)"),
    # --- nodes and control plane
    ("node_control_plane", 9, "notready~not ready~nodenotready~node", r"nodenotready|node(?:\(s\))? \S+ (?:status is now:? |is |has become |became )(?:now )?(?:node)?(?:not ?ready|unreachable|down)|kubenode(?:notready|unreachable)|node .{0,40}(?:lost heartbeat|stopped posting|failed to heartbeat)|nodestatusunknown"),
    ("node_control_plane", 9, "kernel panic~machine check~mce:~hardware error~uncorrect~i/o error~blk_update~smart~edac~ddr~tlb error", r"kernel panic|machine check (?:exception|event)|\bmce: |hardware error|uncorrect(?:able|ed) (?:ecc|error|memory|machine)|(?:buffer )?i/o error(?:,| on) dev|blk_update_request|data tlb error|ddr(?:\d)? .{0,20}error|edac .{0,20}[cu]e\b|smart(?:ctl)?.{0,30}(?:fail|pending sector|reallocated)"),
    ("node_control_plane", 8, "kubelet~containerd~dockerd~docker daemon~pleg~runtime", r"(?:kubelet|containerd|dockerd|docker daemon|cri-o|container runtime)\b.{0,60}(?:stopped|is down|not (?:running|ready|responding)|unhealthy|crash\w*|failed to start|is dead|died|cannot connect|network plugin)|pleg is not healthy|cannot connect to the docker daemon|runtime network not ready|cni plugin not initialized"),
    ("node_control_plane", 8, "etcd~apiserver~leader~raft~quorum~failover~control plane", r"etcd(?:server)?: .{0,60}(?:no leader|timed out|request timed out|lost leader|took too long|nospace)|lost (?:the )?(?:leader|quorum)|no (?:leader|quorum)|apiserver.{0,40}(?:down|unreachable|not ready|unhealthy)|leader ?election (?:lost|failed)|failover (?:initiated|started|triggered|completed|in progress)|control plane.{0,30}(?:down|unavailable|unhealthy)|kubeapidown|etcdnoleader"),
    ("node_control_plane", 7, "spot~preempt~reboot~instance~come online~failed to get node~node ", r"(?:spot|preemptible) (?:instance )?(?:interruption|termination|reclaim|preempt)|instance .{0,40}(?:terminated|status check failed|impaired|retired|was preempted)|system (?:is )?(?:rebooting|reboot)|node .{0,30}(?:rebooted|shutdown|terminated|was drained)|pod failed to come online|failed to get node"),
    # --- CI: tests
    ("ci_test_failure", 9, "fail", r"(?:^|\s)failed (?:consistently: )?(?:\S*/)?(?:test\w*|spec|__tests__)[/\\.]\S+|^(?:.{0,40}\s)?--- fail: |^\s*fail\s+(?:\S+/\S+|\S+\.(?:test|spec)\.\w+)|failed tests?\b|tests? failed\b|=+ .{0,60}\b[1-9]\d* failed\b|\b[1-9]\d* failed, \d+ passed|(?:tests?|suites?|specs?|examples?):?\s+[1-9]\d* (?:failed|failures?)|\btests? run: \d+, failures: (?:[1-9]\d*|0, errors: [1-9])|^\W*[1-9]\d* failing\b|there (?:was|were) [1-9]\d* failures?|\d+ tests? completed, [1-9]\d* failed"),
    ("ci_test_failure", 8, "> ~test", r"test\w{0,60} > .{1,120} failed|\btest_[\w.:/\[\]-]{1,200}(?: \S{1,80}){0,3} (?:\.\.\. )?(?:failed|error)\b(?!.{0,5}=)|test-unexpected-\w+|\d/\d failed!|<<< (?:failure|error)!|(?:test|tests) (?:timed out|hung)|::\w*test\w* failed|test class .{0,40}fail\w*|failed\. this test class"),
    ("ci_test_failure", 8, "snapshot~assertionerror~assertion~expected", r"snapshots? (?:\S+ )?(?:failed|obsolete|mismatch|do(?:es)? not match|did not match)|tomatchsnapshot|expect\(.{0,60}\)\.(?:not\.)?to\w+|assert(?:ion)?error\b|e\s+assert |(?:expected|expect)(?:ed)?:? .{0,80}(?:but (?:was|got|received)|\bgot:?\b|received:? )|comparisonfailure|assertion failed"),
    ("ci_test_failure", 7, "____ ", r"_{4,} [a-z]\S{1,200} _{4,}\s*$"),
    ("ci_test_failure", 7, "data race~race detected~flaky", r"warning: data race|race detected during execution|flaky test|(?:marked|known) (?:as )?flaky"),
    ("ci_test_failure", 8, "fatal python error~received signal~in test_~without output~no output for~application timed out", r"fatal python error: |failed! received signal|line \d+,? in test_|(?:timed out|killed) after \d+ seconds (?:of|with) no output|no output for \d+|application timed out after"),
    ("ci_test_failure", 6, "error collecting~during collection~pytest~junit~unittest~jest~mocha~vitest~karma~surefire~ctest~test result~test failures", r"error collecting|interrupted: \d+ errors? during collection|(?:pytest|junit|unittest|jest|mocha|vitest|karma|surefire|ctest).{0,60}(?:fail|error|exit code [1-9])|there are test failures|test result: failed|errors while running ctest"),
    # --- CI: build, dependencies, gates and runners
    ("ci_build_dependency", 9, "error~compilation fail", r"(?:\.(?:c|cc|cpp|cxx|cu|h|hpp|rs|go|java|kt|ts|tsx|js|swift|scala|cs|m)[:(\[]\d+[:,].{0,12}(?:fatal )?error\b)|(?:fatal )?error (?:c|ts|cs|lnk|msb|bc)\d{3,5}\b|error\[e\d{4}\]|compilation (?:error|failed|failure)|compile error|error: could not compile|\[error\] .{1,200}\.(?:java|kt|scala|groovy):"),
    ("ci_build_dependency", 9, "cannot find symbol~undefined reference~undefined symbol~unresolved external~cannot find module~could not find module~package does not exist~incompatible types~no matching function~module not found~linker~collect2~ld: ", r"cannot find symbol|undefined reference|undefined symbols?\b|unresolved external|cannot find module|could not find module|package [\w.]+ does not exist|incompatible types|no matching function|module not found: |linker command failed|ld: (?:cannot find|symbol)|collect2: error"),
    ("ci_build_dependency", 9, "resolve dep~resolve plugin~resolve all~resolution~dependenc~no matching distribution~no matching version~eresolve~conflicting", r"could not resolve (?:all )?(?:\w+ )?dependenc|could not resolve (?:all )?(?:files|artifacts|plugin|version)|resolution(?:impossible| failed)|unable to resolve dependency|dependenc(?:y|ies).{0,40}(?:conflict|not found|failed to (?:install|resolve|download)|could not be (?:resolved|found)|unresolv)|no matching (?:distribution|version|package)|\beresolve\b|conflicting dependenc|could not find a version that satisfies|failed to (?:fetch|install|download) .{0,40}dependenc|failed to collect dependencies"),
    ("ci_build_dependency", 5, "build failed~build failure~build stopped~failed to execute goal~execution failed for task", r"\bbuild (?:failed|failure)\b|ninja: build stopped|failed to execute goal|execution failed for task"),
    ("ci_build_dependency", 8, "failed to build~failed building~make:~make[~npm err~error: process~failed: [code~failed to solve", r"failed (?:to build|building)\b|^(?:.{0,60})?make(?:\[\d+\])?: \*\*\*|npm err! |npm error |failed: \[code=\d+\]|error: process \"/bin/.{0,200}did not complete successfully|failed to solve"),
    ("ci_build_dependency", 8, "lint~prettier~eslint~format~style~flake8~ruff~mypy~checkstyle~code style~black~rustfmt~clippy~gofmt", r"(?:lint(?:er|ing|runner)?|eslint|prettier|flake8|ruff|mypy|checkstyle|black|rustfmt|clippy|gofmt|stylelint|pylint|spotless|golangci-lint|ktlint)\b.{0,60}(?:fail|error|found|issues?|violations?|problems?|for )|code style issues|would reformat|would be reformatted|(?:formatting|format) (?:check )?(?:failed|issues?|violations?|errors?)|files? (?:would|need|must|should) be? ?(?:re)?format|\d+ problems? \([1-9]\d* errors?|run prettier"),
    ("ci_build_dependency", 7, "vulnerabilit~severity:~dependencies which~audit~coverage~changelog~license~api changes~dependency-analysis~projecthealth~dco~sign-off", r"vulnerabilities found|severity: [1-9]\d* (?:low|moderate|high|critical)|coverage.{0,40}(?:below|under|less than|not met|threshold)|(?:missing|no|without|add|requires?|needs?) (?:a )?changelog|changelog (?:entry )?(?:is )?(?:missing|required|needed|not found)|api changes: [1-9]|projecthealth|dependencies which should be|(?:dco|sign-?off|cla) (?:check )?(?:failed|missing|required)|license check failed"),
    ("ci_build_dependency", 7, "operation was canceled~shutdown signal~lost communication~checkout~remote ref~not a tree~refusing to run~max run time~maximum execution time~maximum run~was canceled~has been cancel~task timeout", r"(?:runner|agent) (?:has received a shutdown|lost communication|is offline)|could(?: not|n't) (?:checkout|find remote ref)|reference is not a tree|refusing to run ci|##\[error\]the operation was canceled|the job (?:was|has been) (?:cancel|exceeded)|exceeded the max(?:imum)? (?:execution|run) ?time|max(?:imum)? run ?time exceeded|task timeout"),
    ("ci_build_dependency", 4, "##[error]", r"##\[error\].{0,60}(?:unable to|could not|no such|not found|failed to (?:download|install|fetch|set ?up|restore))"),
    ("ci_build_dependency", 3, "process completed with exit code~command exited with~script returned exit code~elifecycle", r"##\[error\]process completed with exit code [1-9]|error: process completed with exit code [1-9]|command exited with (?:code|status) [1-9]|script returned exit code [1-9]|elifecycle"),
    ("ci_build_dependency", 6, "missing regression test~reports an error~job ended in~status check", r"missing regression test|upstream job (?:failed|ended)|required (?:status )?check.{0,40}fail|status check.{0,40}fail"),
    # --- false alarms
    ("benign_false_alarm", 9, "watchdog~alerting pipeline~always firing~test alert~testalert~deadmansswitch~dead man", r"\bwatchdog\b(?!.{0,12}(?:timeout|bug|:))|alert(?:ing)? (?:meant|pipeline)|always[- ]firing|\btest ?alert\b|this is a test|deadmansswitch|dead man'?s switch"),
    ("benign_false_alarm", 7, "maintenance", r"(?:planned|scheduled|announced|expected|in) maintenance|maintenance (?:window|mode|started|begin|in progress|completed|finished|ended|scheduled)"),
    ("benign_false_alarm", 6, "recover~resolved~back to normal~restored~re-established~reestablished~reconnected~healthy again~no longer~returned to normal~all checks pass~cleared", r"(?<!not )(?<!n't )\b(?:recovered|auto-?recovered|self-healed)\b|\b(?:alert|incident|issue|problem|condition|alarm|event)\b.{0,30}\b(?:is |was |has been |auto-?)?(?:resolved|cleared|recovered)|^(?:\[?\w+\]?:? ?)?resolved\b|(?:back|returned) to normal|(?:connection|connectivity|service|link|session|replication|access)\b.{0,30}(?:restored|re-?established|recovered)|\breconnected\b|all (?:health )?checks pass|(?:back|within) (?:below|under|within) (?:the )?(?:threshold|limits)"),
    ("benign_false_alarm", 4, "healthy", r"(?<!not )\b(?:is|are|became|turned|reports?) (?:now )?healthy\b|healthy again"),
    ("benign_false_alarm", 5, "scaled down~scaling down~old replica~terminating old~draining~drained~graceful", r"scaled down replica|(?:old|previous) (?:replicas?|pods?|instances?|workers?) .{0,40}(?:terminat|drain|stopp|remov|shut)|terminating old|(?:connections|requests|node|pod) (?:gracefully )?drained|graceful(?:ly)? (?:shutdown|shut down|stop\w*|exit\w*) ?(?:complete\w*|finished|ok|done)?|scale[- ]down (?:as )?planned"),
    ("benign_false_alarm", 6, "expected~planned~drill~false alarm~false positive~no action~informational~self-test~game day~chaos", r"\bas planned\b|(?:this|it|restart\w*|failover|downtime|shutdown|reboot|outage|drain\w*|alert) (?:is|was|were) (?:expected|planned|intentional)\b|\bdrill\b|game ?day|chaos (?:test|experiment)|false (?:alarm|positive)|no action (?:is )?(?:required|needed)|planned (?:restart|reboot|failover|shutdown|drain|upgrade|switchover|deployment)|scheduled (?:restart|reboot|shutdown|job|drain)|self-test (?:passed|ok)|for informational purposes"),
)
# fmt: on

RULES: tuple[Rule, ...] = tuple(
    Rule(category, weight, tuple(literals.split("~")), re.compile(pattern))
    for category, weight, literals, pattern in _TABLE
)

NEGATED = re.compile(
    r"\b(?:no|0|zero|without|never|not|any|free of)\s(?:\w+\s){0,2}(?:errors?|failures?|failed|timeouts?|timed out|restarts?|oom\w*|deadlocks?|"
    r"crash\w*|panics?|leaks?|exceptions?|vulnerabilit\w+|packet loss|problems?|issues?|violations?|throttl\w+)\b(?! to| in)"
    r"|\b(?:errors?|failures?|failed|timeouts?|oom_?kills?|dropped|restarts?|throttled|rejected|vulnerabilities|deadlocks|lag|429|5xx|4xx|panics)"
    r"(?:\"|')?\s*[=:]\s*(?:\"|')?0(?![.\d])"
    r"|\b(?:if|when|unless|should|would|in case of?|on|handle[sd]?|handling|simulat\w+|test(?:ing)?)\s(?:an?\s|the\s)?(?:\w+\s){0,2}"
    r"(?:rate limit\w*|429|connection (?:is )?refused|timed? ?outs?|oom|out of memory|deadlocks?|failover)\b",
)
"""What takes a match back: "0 errors", "no failures", "retry when rate limited". Only a match that overlaps counts as taken back."""

PASSED = re.compile(
    r"(?:\bpassed\b|\bpass:|^\s*(?:--- )?pass\b|^\s*[✓√✔]|^\s*ok\s|\.\.\. ok\s*$|\[\s+ok\s+\])(?!.*\bfail(?:ed|ures?)\b)"
)
"""A test that passed says nothing, whatever its name."""

SOURCE_CODE = re.compile(
    r"^\s*(?:if \[|if \(|elif |echo |printf |raise \w|throw new |return [\w(\"'f]+\(|await \w|const |let \w+ =|var \w+ =|def \w+\(|function \w|export [a-z_]+=|fail \")|"
    r";\s*then\b|\$\{\{|^\s*\|?\s*\d+ \| |^\s*>\s*\d+ \| ",
)
"""A line of a program or a script that is printed, not what it did."""

CI_MARKS: tuple[str, ...] = (
    "##[group]",
    "##[error]",
    "##[endgroup]",
    "github_workspace",
    "github actions",
    "/home/runner/",
    "actions/checkout",
    "gitlab-runner",
    "[pipeline]",
    "travis_",
    "mozharness",
    "[taskcluster",
    "gitlab ci",
    "teamcity",
    "npm err!",
    "build failure",
    "build failed",
    "test session starts",
    "=== run ",
    "> task :",
    "[info] build",
    "taskcluster",
    "test suites:",
    "running tests",
    "collected ",
    "maven-surefire",
    "ninja: build stopped",
    "buildkite",
    "circleci",
    "jenkins",
    "test-unexpected-fail",
    "[error] failed to execute goal",
    "--- fail:",
    "=== failures ===",
    "compilation failure",
)
"""Words of a build server or a test runner; two different ones make a log a CI log."""

ROLLOUT = re.compile(
    r"\b(?:rolling (?:out|update)|rollout (?:started|begin|of|to|in progress)|deploy(?:ed|ing|ment) (?:\S+ ){0,4}(?:version|started|v?\d+\.\d+|revision|release|to prod)|"
    r"(?:upgraded|upgrading|updated|bumped|released) (?:\S+ ){0,4}(?:to|from) (?:version )?v?\d+\.\d+|release \S+ (?:has been )?(?:upgraded|deployed)|"
    r"scaled up replica set|new (?:version|release|revision|image) (?:\S+ )?(?:deployed|rolled|live|active)|image (?:changed|updated)|helm upgrade|"
    r"starting (?:deploy|rollout|release)|switched traffic to)"
)
"""A new version went out. Errors that begin only after such a line speak for `deploy_regression`."""
ROLLOUT_LITERALS: tuple[str, ...] = (
    "roll",
    "deploy",
    "upgrad",
    "updated",
    "bumped",
    "release",
    "scaled up replica set",
    "new version",
    "image ",
    "switched traffic",
)
