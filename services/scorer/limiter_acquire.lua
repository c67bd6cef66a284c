-- All or nothing: requests and tokens (GCRA), slots (leases), cool-down, fair shares between jobs.
-- The twin is ScopeState.acquire in limiter_state.py; both must decide alike on every history.
-- KEYS, one hash tag: 1 request TAT, 2 token TAT, 3 slots (zset ticket -> lease end), 4 cool-down,
--   5 virtual times (zset), 6 waiting jobs (zset job -> back by), 7 slowness and virtual now (hash)
-- ARGV: 1 ticket, 2 job, 3 weight, 4 tokens, 5 followed (0/1), 6 us per request, 7 burst requests,
--   8 us per token, 9 burst tokens, 10 slots, 11 lease us, 12 now us (0: the server's clock)
local MINUTE, POLL, YIELD, GRACE, FASTER, MAX_JOBS = 60000000, 500000, 5000, 1000000, 0.95, 1000
local function num(key) return tonumber(redis.call('GET', key) or '0') or 0 end
local function int(x) return string.format('%.0f', x) end -- tostring() keeps only 14 digits
local now = tonumber(ARGV[12])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local ticket, job, weight, tokens = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local Br, Bt = tonumber(ARGV[7]), tonumber(ARGV[9])

local known = redis.call('HMGET', KEYS[7], 'slowness', 'slowed_at', 'virtual_now')
local slow, slowed_at = tonumber(known[1] or '1'), tonumber(known[2] or '0')
local virtual_now = tonumber(known[3] or '0')
for _ = 1, math.max(0, math.min(100, math.floor((now - slowed_at) / MINUTE))) do slow = slow * FASTER end
slow = math.max(1, slow)
local Tr, Tt = tonumber(ARGV[6]) * slow, tonumber(ARGV[8]) * slow

local wait, why = 0, 'ok'
local function need(us, name) if us > wait then wait, why = us, name end end
-- a clock that was set back must not hold anyone for longer than the limits can
local tr = math.max(now, math.min(num(KEYS[1]), now + Br * Tr)) + Tr
local tt = math.max(now, math.min(num(KEYS[2]), now + 2 * Bt * Tt)) + Tt * tokens
need(num(KEYS[4]) - now, 'cooldown')
need(tr - Br * Tr - now, 'requests')
need(tt - Bt * Tt - now, 'tokens')
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', int(now)) -- the slots of crashed holders
local most = math.max(1, math.floor(tonumber(ARGV[10]) / slow))
if not redis.call('ZSCORE', KEYS[3], ticket) and redis.call('ZCARD', KEYS[3]) >= most then
  local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  need(math.min(tonumber(first[2]) - now, POLL), 'concurrency')
end

redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', int(now))
local ahead
for _, other in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  if other ~= job then
    local v = tonumber(redis.call('ZSCORE', KEYS[5], other) or '0')
    if not ahead or v < ahead then ahead = v end
  end
end
local mine = tonumber(redis.call('ZSCORE', KEYS[5], job) or '0')
if not redis.call('ZSCORE', KEYS[6], job) then mine = math.max(mine, virtual_now) end -- no credit for idle time
if wait == 0 and ahead and mine > ahead then need(math.max(Tr, YIELD), 'fairness') end

if wait > 0 then
  wait = math.ceil(wait)
  redis.call('ZADD', KEYS[5], mine, job)
  redis.call('ZADD', KEYS[6], int(now + wait + GRACE), job)
else
  redis.call('SET', KEYS[1], int(tr), 'PX', int(math.ceil((tr - now) / 1000) + 60000))
  redis.call('SET', KEYS[2], int(tt), 'PX', int(math.ceil((tt - now) / 1000) + 60000))
  redis.call('ZADD', KEYS[3], int(now + tonumber(ARGV[11])), ticket)
  local cost = 1
  if Tr > 0 then cost = 1 + tokens * Tt / Tr end
  virtual_now = math.max(virtual_now, mine)
  redis.call('HSET', KEYS[7], 'virtual_now', virtual_now)
  redis.call('ZADD', KEYS[5], mine + cost / weight, job)
  if ARGV[5] == '1' then
    redis.call('ZADD', KEYS[6], int(now + GRACE), job)
  else
    redis.call('ZREM', KEYS[6], job)
  end
  if redis.call('ZCARD', KEYS[5]) > MAX_JOBS then -- below the present virtual time they say nothing
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', '(' .. string.format('%.17g', virtual_now))
  end
end
for _, key in ipairs({KEYS[3], KEYS[5], KEYS[6], KEYS[7]}) do redis.call('PEXPIRE', key, 3600000) end
return {wait > 0 and 0 or 1, int(wait), why}
