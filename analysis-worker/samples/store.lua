local json = require("lib.json")
local M = {}

LIMIT = 8

-- Opens a store.
function M.open(path)
  local size = 0
  local function helper(x) return x end
  return json.decode(helper(path))
end

function M:keep(item) self.items:insert(item) end

local close = function() end
M.shut = function() close() end
local function later() end

return { get = function(key) return key end }
