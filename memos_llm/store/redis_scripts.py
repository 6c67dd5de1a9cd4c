"""What Redis does in one step: a script each, and nothing between its steps is seen by anyone else.

Used by `store.redis`. Every script begins with `BEGIN`: ARGV[1] is the prefix of all keys, ARGV[2] a clock instead of
the server's (empty: Redis TIME), ARGV[3] the schema that this version knows. KEYS[1] is the flags' key: it tells a
cluster the slot, in which the hash tag keeps all the others. A document is stored and told as it came, never written
anew by Lua. Needs Redis 6 (or Valkey): TIME before a write, as the effects are replicated and not the script.
"""

import hashlib

BEGIN = """
local call = redis.call
local function key(name) return ARGV[1] .. name end
local function exact(number) return string.format('%.17g', number) end
local function clock()
  if ARGV[2] ~= '' then return tonumber(ARGV[2]) end
  local time = call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local now = clock()
local schema = tonumber(call('HGET', KEYS[1], 'schema') or '0')
local newer = schema > tonumber(ARGV[3])
"""


class Script:
    """`name`: for messages."""

    def __init__(self, name: str, body: str) -> None:
        self.name = name
        self.source = BEGIN + body
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


COMMIT = Script(
    "commit",
    """
-- 4 expected, 5 schema, 6 installation, 7 revision, 8 flags, 9 audit entry, 10 incident's id or '', 11 incident
if newer then return {'newer', schema} end
local found = call('HGET', KEYS[1], 'revision') or '0'
if found ~= ARGV[4] then return {'conflict', found} end
call('HSET', KEYS[1], 'schema', ARGV[5], 'installation', ARGV[6], 'revision', ARGV[7], 'document', ARGV[8])
call('LPUSH', key('history'), ARGV[9])
if ARGV[10] ~= '' and call('HSETNX', key('incident'), ARGV[10], ARGV[11]) == 1 then
  call('LPUSH', key('incidents'), ARGV[10])
  call('RPUSH', key('untold'), ARGV[10])
end
redis.pcall('PUBLISH', key('changed'), ARGV[7])  -- who may not publish is heard by the polls
return {'ok'}
""",
)

_INCIDENT = """
local function whole(id)
  return {call('HGET', key('incident'), id), call('LRANGE', key('evidence:' .. id), 0, -1)}
end
"""

INCIDENTS = Script(
    "incidents",
    _INCIDENT
    + """
-- 4 the last one's index
local found = {}
for i, id in ipairs(call('LRANGE', key('incidents'), 0, ARGV[4])) do found[i] = whole(id) end
return found
""",
)

NOTE = Script(
    "note",
    """
-- 4 incident's id, 5 evidence, 6 the most of it
if newer then return {'newer', schema} end
local document = call('HGET', key('incident'), ARGV[4])
if document then
  local own = cjson.decode(document).evidence
  local count = (type(own) == 'table' and #own or 0) + call('LLEN', key('evidence:' .. ARGV[4]))
  if count < tonumber(ARGV[6]) then call('RPUSH', key('evidence:' .. ARGV[4]), ARGV[5]) end
end
return {'ok'}
""",
)

CLAIM = Script(
    "claim",
    _INCIDENT
    + """
-- 4 by whom, 5 for how many seconds
if newer then return {} end
for _, id in ipairs(call('LRANGE', key('untold'), 0, -1)) do
  local until_at = call('HGET', key('claims'), id)
  if not until_at or tonumber(string.match(until_at, '^%S+')) <= now then
    call('HSET', key('claims'), id, exact(now + tonumber(ARGV[5])) .. ' ' .. ARGV[4])
    return whole(id)
  end
end
return {}
""",
)

RENEW = Script(
    "renew",
    """
-- 4 incident's id, 5 by whom, 6 for how many seconds
local claim = call('HGET', key('claims'), ARGV[4])
if newer or not claim or string.match(claim, '^%S+ (.*)$') ~= ARGV[5] then return {} end
call('HSET', key('claims'), ARGV[4], exact(now + tonumber(ARGV[6])) .. ' ' .. ARGV[5])
return {'ok'}
""",
)

TOLD = Script(
    "told",
    """
-- 4 incident's id
if not newer then
  call('LREM', key('untold'), 0, ARGV[4])
  call('HDEL', key('claims'), ARGV[4])
end
return {}
""",
)

HEARTBEAT = Script(
    "heartbeat",
    """
-- 4 instance's id, 5 its row, 6 after how many seconds rows are forgotten
if newer then return {} end
for _, id in ipairs(call('ZRANGEBYSCORE', key('heartbeats'), '-inf', '(' .. exact(now - tonumber(ARGV[6])))) do
  call('HDEL', key('instances'), id)
  call('ZREM', key('heartbeats'), id)
end
call('HSET', key('instances'), ARGV[4], ARGV[5])
call('ZADD', key('heartbeats'), exact(now), ARGV[4])
call('EXPIRE', key('instances'), ARGV[6])
call('EXPIRE', key('heartbeats'), ARGV[6])
return {}
""",
)

LEAVE = Script(
    "leave",
    """
-- 4 instance's id
if not newer then
  call('HDEL', key('instances'), ARGV[4])
  call('ZREM', key('heartbeats'), ARGV[4])
end
return {}
""",
)

INSTANCES = Script(
    "instances",
    """
-- 4 for how many seconds a heartbeat is life
local found = {}
local since = '(' .. exact(now - tonumber(ARGV[4]))
local beats = call('ZRANGEBYSCORE', key('heartbeats'), since, '+inf', 'WITHSCORES')
for i = 1, #beats, 2 do
  found[#found + 1] = {call('HGET', key('instances'), beats[i]), beats[i + 1]}
end
return found
""",
)

# A row is `width:start:key's number`: a hash of counts, listed by its last change (`windows:changed`) and by its start.
# A cursor is the random name of a merge (`windows:merges`), so that one of another life of the store is never taken for
# one of this one, even if an older copy has been merged into since.
_ROWS = """
-- 4 and 5: for how many seconds rows of one second, of one minute are kept
local first = {['1'] = math.floor(now) - tonumber(ARGV[4]), ['60'] = math.floor(now) - tonumber(ARGV[5])}
local function told(rows, from, to)
  local names, found = {}, {}
  for i = from, math.min(to, #rows) do
    local width, start, id = string.match(rows[i], '^(%d+):(%d+):(%d+)$')
    if tonumber(start) >= first[width] then
      if names[id] == nil then names[id] = call('HGET', key('windows:names'), id) or nil end
      if names[id] then
        local flat, counts = call('HGETALL', key('windows:row:' .. rows[i])), {}
        for j = 1, #flat, 2 do counts[flat[j]] = tonumber(flat[j + 1]) end
        found[#found + 1] = '[' .. width .. ',' .. start .. ',"' .. id .. '",' .. cjson.encode(counts) .. ']'
      end
    end
  end
  return '{"names":' .. cjson.encode(names) .. ',"rows":[' .. table.concat(found, ',') .. ']}'
end
"""

MERGE = Script(
    "merge",
    _ROWS
    + """
-- 6 the merge's name, 7 cursor, 8 [[width, start, key, {field: n}], …] or '', 9 the most keys, 10 when they are too
-- many, 11 rows told at once, 12 merges remembered, 13 rows dropped at once
local numbers = {}
local function number(name, merge)
  local id = numbers[name]
  if id then return id end
  id = call('HGET', key('windows:ids'), name)
  if not id then
    id = string.format('%d', call('HINCRBY', key('windows'), 'keys', 1))
    call('HSET', key('windows:ids'), name, id)
    call('HSET', key('windows:names'), id, name)
  end
  call('ZADD', key('windows:used'), merge, id)
  numbers[name] = id
  return id
end

local function drop()
  for width, start in pairs(first) do
    local starts = key('windows:starts:' .. width)
    for _, row in ipairs(call('ZRANGEBYSCORE', starts, '-inf', '(' .. exact(start), 'LIMIT', 0, ARGV[13])) do
      call('DEL', key('windows:row:' .. row))
      call('ZREM', key('windows:changed'), row)
      call('ZREM', starts, row)
    end
  end
  call('ZREMRANGEBYRANK', key('windows:merges'), 0, -1 - tonumber(ARGV[12]))
  local keys = call('ZCARD', key('windows:used'))
  if keys <= tonumber(ARGV[10]) then return end
  for _, id in ipairs(call('ZRANGE', key('windows:used'), 0, keys - tonumber(ARGV[9]) - 1)) do
    local name = call('HGET', key('windows:names'), id)
    if name then call('HDEL', key('windows:ids'), name) end
    call('HDEL', key('windows:names'), id)
    call('ZREM', key('windows:used'), id)
  end
end

if ARGV[8] ~= '' and not call('ZSCORE', key('windows:merges'), ARGV[6]) then
  if newer then return {'newer', schema} end
  local merge = call('HINCRBY', key('windows'), 'merges', 1)
  for _, one in ipairs(cjson.decode(ARGV[8])) do
    local width, start, counts = string.format('%d', one[1]), one[2], one[4]
    if start >= first[width] then
      local row = width .. ':' .. string.format('%d', start) .. ':' .. number(one[3], merge)
      local sums = key('windows:row:' .. row)
      local anew = call('ZADD', key('windows:starts:' .. width), start, row) == 1
      for field, n in pairs(counts) do
        if call('HINCRBY', sums, field, string.format('%d', n)) == 0 then call('HDEL', sums, field) end
        anew = anew or n < 0  -- it may have become empty, and so be gone
      end
      if anew then call('EXPIRE', sums, (width == '1' and ARGV[4] or ARGV[5]) + 120) end
      call('ZADD', key('windows:changed'), merge, row)
    end
  end
  call('ZADD', key('windows:merges'), merge, ARGV[6])
  drop()
  for _, name in ipairs({'', ':ids', ':names', ':used', ':changed', ':merges', ':starts:1', ':starts:60'}) do
    call('EXPIRE', key('windows' .. name), ARGV[5] + 3600)
  end
end

local since = call('ZSCORE', key('windows:merges'), ARGV[7])
local rows = call('ZRANGEBYSCORE', key('windows:changed'), '(' .. (since or '0'), '+inf')
local page = tonumber(ARGV[11])
return {
  'ok', exact(now), call('ZREVRANGE', key('windows:merges'), 0, 0)[1] or '0', since and 'more' or 'whole',
  told(rows, 1, page), table.concat(rows, ' ', math.min(page, #rows) + 1)
}
""",
)

ROWS = Script(
    "rows",
    _ROWS
    + """
-- 6 the rows asked for
local rows = {}
for row in string.gmatch(ARGV[6], '%S+') do rows[#rows + 1] = row end
return told(rows, 1, #rows)
""",
)

RECORD = Script(
    "record",
    """
-- 4 [[day, line, what, n, first, last], …], 5 days kept, 6 the most lines, 7 the line of the rest
if newer then return {'newer', schema} end
local most, rest = tonumber(ARGV[6]), ARGV[7]
local ids = key('inventory:ids')
local function number(line)
  local id = call('HGET', ids, line)
  if id then return id end
  if line ~= rest and call('HLEN', ids) - call('HEXISTS', ids, rest) >= most then return number(rest) end
  id = string.format('%d', call('HINCRBY', key('inventory'), 'lines', 1))
  call('HSET', ids, line, id)
  call('HSET', key('inventory:lines'), id, line)
  return id
end

call('HSETNX', key('inventory'), 'since', exact(now))
for _, one in ipairs(cjson.decode(ARGV[4])) do
  local day, id, n, from, to = one[1], number(one[2]), one[4], one[5], one[6]
  local counts, field = key('inventory:day:' .. day), id .. ' ' .. one[3]
  local before = call('HGET', counts, field)
  if before then
    local known, began, ended = string.match(before, '^(%S+) (%S+) (%S+)$')
    n, from, to = n + tonumber(known), math.min(from, tonumber(began)), math.max(to, tonumber(ended))
  end
  call('HSET', counts, field, string.format('%d ', n) .. exact(from) .. ' ' .. exact(to))
  call('ZADD', key('inventory:days'), day, day)
  if day > tonumber(call('HGET', key('inventory:last'), id) or '-1') then
    call('HSET', key('inventory:last'), id, day)
  end
end

local oldest = math.floor(now / 86400) - tonumber(ARGV[5])
local gone = call('ZRANGEBYSCORE', key('inventory:days'), '-inf', '(' .. oldest)
for _, day in ipairs(gone) do
  call('DEL', key('inventory:day:' .. day))
  call('ZREM', key('inventory:days'), day)
end
if #gone > 0 then
  local last = call('HGETALL', key('inventory:last'))
  for i = 1, #last, 2 do
    if tonumber(last[i + 1]) < oldest then
      call('HDEL', ids, call('HGET', key('inventory:lines'), last[i]))
      call('HDEL', key('inventory:lines'), last[i])
      call('HDEL', key('inventory:last'), last[i])
    end
  end
end
return {'ok'}
""",
)

RECORDED = Script(
    "recorded",
    """
-- 4 the first day
return {
  call('HGET', key('inventory'), 'since') or '', call('HGETALL', key('inventory:lines')),
  call('ZRANGEBYSCORE', key('inventory:days'), ARGV[4], '+inf')
}
""",
)
