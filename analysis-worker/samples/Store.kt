package org.example.store

import java.util.concurrent.*
import org.example.Base as B

const val LIMIT = 8
var opened: Int = 0

/** Keeps items. */
class Store<T>(private val path: String, size: Int) : B(path), Keeper<T> {
    private val items = mutableListOf<T>()
    val size: Int
        get() { val local = items.size; return local }

    constructor() : this("x", 1)

    init {
        val hidden = 1
    }

    // Keeps one.
    override fun keep(item: T): Boolean {
        fun local(x: Int) = x + 1
        return items.add(item)
    }

    companion object {
        fun open() = Store<Int>()
    }
}

interface Keeper<T> {
    fun keep(item: T): Boolean
}
enum class State { OPEN, CLOSED }
object Registry {
    val all = listOf<String>()
}
data class Point(val x: Int)
typealias Items = List<String>
fun String.shout() = uppercase()
