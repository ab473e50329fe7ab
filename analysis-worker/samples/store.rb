require 'json'
require_relative '../lib/base'

# Keeps items.
module Kept
  LIMIT = 8

  # One store.
  class Store < Base::Kept
    include Comparable
    attr_reader :items, :size

    def self.open(path)
      new(path)
    end

    # Keeps one.
    def keep(item)
      @items << JSON.parse(item)
      helper.call
    end

    def size=(n); end

    class << self
      def build; end
    end
  end
end

class Kept::Other; end

def top(x) = x + 1
